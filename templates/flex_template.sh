#!/usr/bin/env bash
# Prints the commands that build the image of a Flex Template and its spec, and launch it; RUN=1 runs the first two.
#
#   PROJECT=my-project BUCKET=my-bucket templates/flex_template.sh score
set -euo pipefail
name=${1:?usage: flex_template.sh TEMPLATE}
for needed in PROJECT BUCKET; do
  if [ -z "${!needed:-}" ]; then
    echo "make template needs your project and a bucket of it: make template PROJECT=my-project BUCKET=my-bucket" >&2
    exit 2
  fi
done
region=${REGION:-us-central1}
bucket=${BUCKET#gs://}
bucket=${bucket%/}
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
kind=cpu build_args=()
if [ "${GPU:-0}" = 1 ]; then  # CUDA of the major version that PyTorch was built for
  kind=gpu build_args=(--build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04)
fi
image=$region-docker.pkg.dev/$PROJECT/torchbeam/$name:$version-$kind
spec=gs://$bucket/templates/$name-$version-$kind.json

# The Dockerfile is not at the root, so Cloud Build needs to be told; its steps are those of `docker build`.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
config=$folder/cloudbuild.yaml
args=$(printf '"%s", ' build -f templates/score/Dockerfile --build-arg "TEMPLATE=$name" -t "$image" ${build_args[@]+"${build_args[@]}"} .)
cat >"$config" <<EOF
steps: [{name: gcr.io/cloud-builders/docker, args: [${args%, }]}]
images: ["$image"]
timeout: 3600s
options: {diskSizeGb: 100, machineType: E2_HIGHCPU_8}
EOF

say() { printf '%s\n' "$*"; }
# A command as one would type it: quoted where the shell would take a character for itself.
show() {
  local line='' word
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]] || word="'$word'"
    line+="$word "
  done
  say "${line% }"
}
step() {
  show "$@"
  if [ "${RUN:-0}" = 1 ]; then "$@"; fi
}

say "# Once: a repository for the image."
say "# gcloud artifacts repositories create torchbeam --repository-format=docker --location=$region --project=$PROJECT"
say "# The image, by Cloud Build:"
if [ "${RUN:-0}" != 1 ]; then
  say "cat >cloudbuild.yaml <<'EOF'"
  cat "$config"
  say EOF
  show gcloud builds submit . --config=cloudbuild.yaml --project="$PROJECT" --region="$region"
else
  step gcloud builds submit . --config="$config" --project="$PROJECT" --region="$region"
fi
say "# The template, a file in the bucket:"
step gcloud dataflow flex-template build "$spec" --image="$image" --sdk-language=PYTHON \
  --metadata-file="templates/$name/metadata.json" --project="$PROJECT"
say "# A launch. Between ^ and ^ is what separates parameters, since values have commas in them:"
parameters="^~^input=gs://$bucket/data/*.parquet~model=gs://$bucket/models/my-model~output=gs://$bucket/scored~sdk_container_image=$image"
if [ "$name" = stream ]; then
  topics=pubsub://$PROJECT/topics
  parameters="^~^input=pubsub://$PROJECT/subscriptions/rows~model=gs://$bucket/models/my-model~output=$topics/scored"
  parameters+="~dead_letters=$topics/dead~sdk_container_image=$image"
fi
[ "${GPU:-0}" != 1 ] || parameters+="~accelerator=type:nvidia-l4;count:1;machine_type:g2-standard-4;install-nvidia-driver"
show gcloud dataflow flex-template run "$name-$(date +%Y%m%d-%H%M%S)" --template-file-gcs-location="$spec" \
  --project="$PROJECT" --region="$region" --temp-location="gs://$bucket/tmp" --staging-location="gs://$bucket/staging" \
  --parameters="$parameters"
