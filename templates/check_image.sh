#!/usr/bin/env bash
# Executes the steps of a template's Dockerfile without a Docker engine, and runs the template's script in the result.
#
#   PYTHON=.venv/bin/python templates/check_image.sh score
#
# The public images are stood in for: BASE by an Ubuntu of the same release out of debootstrap, the image of the Beam SDK and
# that of the launcher by empty ones with the files that are copied out of them. All else is the real thing: apt, the
# lock with its hashes, the package. PYTHON is one with the tools of development; it trains the model of the example, which
# is then scored with in the image. Needs root, buildah and debootstrap (Debian: apt-get install buildah debootstrap), the
# package archives of Ubuntu and Python, and about 25 GB in TMPDIR while it runs.
set -euo pipefail
template=${1:?usage: check_image.sh TEMPLATE}
cd "$(dirname "$0")/.."
dockerfile=templates/$template/Dockerfile
for tool in buildah debootstrap; do
  command -v "$tool" >/dev/null || { echo "check_image.sh: there is no $tool on this machine" >&2; exit 1; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/check-image-XXXXXX")
buildah=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
finish() {
  "${buildah[@]}" rm --all >/dev/null 2>&1 || true
  rm -rf --one-file-system "$work"
}
trap finish EXIT

base=$(sed -n 's/^ARG BASE=ubuntu://p' "$dockerfile")
declare -A codenames=([24.04]=noble)
codename=${codenames[$base]:?the code name of Ubuntu $base is not known here}
echo "== the base: Ubuntu $base ($codename) by debootstrap"
# The script is the same for all releases of Ubuntu; debootstrap of Debian does not have the name of each.
debootstrap --variant=minbase --components=main,universe --no-check-gpg "$codename" "$work/base" \
  http://archive.ubuntu.com/ubuntu /usr/share/debootstrap/scripts/gutsy >"$work/debootstrap.log" || { tail "$work/debootstrap.log" >&2; exit 1; }
rm -rf "$work/base/var/cache/apt/archives"/*.deb
# What this machine needs to reach the archives: its certificates, and pip's settings.
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
  mkdir -p "$work/base/etc/ssl/certs"
  cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/machine.crt"
  printf '[global]\ncert = /etc/ssl/certs/machine.crt\ntimeout = 180\n' >"$work/base/etc/pip.conf"
fi

mkdir -p "$work/sdk/opt/apache/beam" "$work/launcher/opt/google/dataflow"
printf '#!/bin/sh\necho stand-in\n' | tee "$work/sdk/opt/apache/beam/boot" >"$work/launcher/opt/google/dataflow/python_template_launcher"
chmod +x "$work/sdk/opt/apache/beam/boot" "$work/launcher/opt/google/dataflow/python_template_launcher"
for image in base sdk launcher; do
  container=$("${buildah[@]}" from scratch)
  "${buildah[@]}" add --quiet "$container" "$work/$image" / >/dev/null
  "${buildah[@]}" commit --quiet --rm "$container" "stand-in-$image" >/dev/null
  rm -rf --one-file-system "${work:?}/$image"
done

echo "== the steps of $dockerfile"
"${buildah[@]}" bud --isolation chroot --ignorefile .dockerignore --file "$dockerfile" --tag "template-$template" \
  --build-arg BASE=localhost/stand-in-base --build-arg SDK=localhost/stand-in-sdk --build-arg LAUNCHER=localhost/stand-in-launcher .

echo "== in the image"
container=$("${buildah[@]}" from "localhost/template-$template")
run() { "${buildah[@]}" run --isolation chroot "$@"; }
run "$container" python "templates/$template/main.py" --help | tail -n 3
# Nothing in the image needs root, although Dataflow does.
run --user 65534:65534 "$container" python "templates/$template/main.py" --help >/dev/null
run "$container" python -m pip check
run "$container" python -c 'import sys, apache_beam, torch, pipelines; print("Python", sys.version.split()[0], "Beam", apache_beam.__version__, "torch", torch.__version__, pipelines.__file__)'
run "$container" sh -c 'test -x /opt/apache/beam/boot && test -x /opt/google/dataflow/python_template_launcher && test -f "$FLEX_TEMPLATE_PYTHON_PY_FILE"'

echo "== the example, scored in the image, and its launch as the launcher would have it written"
"${PYTHON:-python3}" examples/digits/train.py "$work/digits" >/dev/null
"${buildah[@]}" add --quiet "$container" "$work/digits" /digits >/dev/null
score=(python "templates/$template/main.py" --input=/digits/table.parquet --model=/digits/model --output=/digits/scored)
run "$container" "${score[@]}" --runner=FnApiRunner | head -n 4
run "$container" mkdir /staging
run "$container" "${score[@]}" --overwrite=true --shared_filesystem --no_auth --dataflow_endpoint=http://localhost:1 \
  --project=my-project-1 --region=us-central1 --temp_location=/staging --template_location=/staging/job_object \
  --sdk_container_image="template-$template"
run "$container" test -s /staging/job_object -a -s /staging/pipeline.pb
echo "== the image is as it should be"
