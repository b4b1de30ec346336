# make score    set up, train the example model, score a table with it and evaluate the predictions
# make pipeline    set up, then prepare, train, score and evaluate from one file (examples/breast_cancer)
# make stream   score a live stream of images over a real Kafka broker, for half a minute (needs Java and Maven)
# make test     set up, then lint, types and all tests (JOBS=2 at a time)
# make check    the same without the slow tests, for use while writing
# make fuzz     property tests with random seeds until FUZZ_SECONDS=300 are over or one fails
# make bench    torchbeam beside a loop by hand and Beam's own handler, in under five minutes (WORKLOADS=T,E PEERS=… ROWS=4M ROUNDS=3)
# make bench-table    the results of docs/performance.md anew, all workloads and peers: about an hour on two cores
# make lock     resolve the locks anew
# make kafka    the jars of a Kafka broker for the tests and `make stream` (needs Java and Maven)
# make spark-job-server SPARK_VERSION=3.5.7    the job server for Spark of that version (needs Java and Maven)
# make prism    the Prism runner for streams on one machine (needs Go)
# make clean    remove what the targets made, the virtual environment too
# make template PROJECT=… BUCKET=… [TEMPLATE=stream] [REGION=…] [GPU=1] [RUN=1]    print, or build, the Flex Template for Dataflow
# make template-metadata    write its metadata.json anew
# make api                  write docs/api.md anew from the docstrings
# make check-image          execute its Dockerfile with stand-ins for the public images (root, buildah, debootstrap)

.DEFAULT_GOAL := help
.PHONY: help setup score pipeline stream test check fuzz services lint types format lock bench bench-table bench-search bench-lock \
  kafka spark-job-server prism clean template template-metadata api \
  check-image
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
# Changes with the lock and the package's metadata, so that a newer one is installed by itself.
STAMP := $(VENV)/.installed
OUT := out/digits

# What templates/flex_template.sh takes from the command line of make.
export PROJECT BUCKET REGION GPU RUN

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

setup: $(STAMP)

# A name on PATH may be a shim for a Python that is not there, or one without venv: each is tried.
# The pip that comes with Python fetches uv, which installs in a third of the time; where it cannot (it does not read
# pip's configuration, so it knows no mirror that is set there), pip does.
$(STAMP): requirements.lock pyproject.toml setup.py
	@set -euo pipefail; \
	usable='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	if ! $(BIN)/python -c "$$usable" 2>/dev/null; then \
	  found=; \
	  for name in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	    if "$$name" -c "$$usable" >/dev/null 2>&1; then found=$$name; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'There is no Python 3.11, 3.12 or 3.13 with venv on PATH.' >&2; \
	    echo 'Install one, or name it: make score PYTHON=/path/to/python3.12' >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi; \
	echo 'Installing requirements.lock (PyTorch comes with CUDA: some GB)'; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  --config-settings editable_mode=compat --editable .; \
	touch $@

score: $(STAMP)
	$(BIN)/python examples/digits/train.py $(OUT)
	$(BIN)/python -m torchbeam score --input=$(OUT)/table.parquet --model=$(OUT)/model --output=$(OUT)/scored --probabilities --overwrite
	@$(BIN)/python examples/digits/show.py $(OUT)/scored
	$(BIN)/python -m torchbeam evaluate --input=$(OUT)/scored --label=digit --output=$(OUT)/evaluation --fail_below=accuracy=0.9 --overwrite

pipeline: $(STAMP)
	$(BIN)/python examples/breast_cancer/tables.py out/breast_cancer/data
	$(BIN)/python -m torchbeam run --config=examples/breast_cancer/config.yaml

stream: $(STAMP) kafka
	@$(BIN)/python examples/stream/run.py out/stream

# Files are handed out whole, since tests of a file share what they set up, and in the order of tests/conftest.py.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest
PARALLEL = --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

test: lint types services
	$(PYTEST) $(PARALLEL)

check: lint types
	$(PYTEST) $(PARALLEL) -m 'not slow'

FUZZ_SECONDS ?= 300
fuzz: $(STAMP)
	@end=$$((SECONDS + $(FUZZ_SECONDS))); \
	while $(PYTEST) $(PARALLEL) --quiet --hypothesis-profile=fuzz -m 'hypothesis and not slow' || exit; [ $$SECONDS -lt $$end ]; do :; done

services:
	@tests/services.sh

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)
	$(BIN)/mypy --num-workers=$(JOBS)

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra dev \
	  pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock \
	  --extra stream pyproject.toml -o templates/requirements.lock

# An environment of its own, so that the peers (Spark, Ray, Daft, …) are not in that of the package, which runs from the clone.
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed
# Before each measurement of bench-table: such as MEASURE='nice -n -15', or a lock on a machine that others use, too.
MEASURE ?=
BENCH = $(MEASURE) $(BENCH_VENV)/bin/python -m benchmarks.run --data=$(DATA)
WORKLOADS ?= T,E,S
PEERS ?= loop,loop_readahead,torchbeam,elements_loop,elements_stock,elements_torchbeam,imports,torchbeam_command
ROUNDS ?= 3
DATA ?= out/benchmark

$(BENCH_STAMP): benchmarks/requirements.lock
	@set -euo pipefail; \
	for name in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if "$$name" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then found=$$name; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then echo 'There is no Python 3.11, 3.12 or 3.13 with venv on PATH: make bench PYTHON=/path/to/python3.12' >&2; exit 1; fi; \
	"$$found" -m venv --clear $(BENCH_VENV); \
	echo 'Installing benchmarks/requirements.lock (PyTorch, Spark, Ray: some GB)'; \
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv && \
	  $(BENCH_VENV)/bin/uv pip install --quiet --compile-bytecode --python $(BENCH_VENV)/bin/python --require-hashes -r benchmarks/requirements.lock || \
	  $(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock; \
	touch $@

# Each workload takes those of PEERS that can do it.
bench: $(BENCH_STAMP)
	$(BENCH) --workload=$(WORKLOADS) --peers=$(PEERS) --rounds=$(ROUNDS) $(if $(ROWS),--rows=$(ROWS))

bench-table: $(BENCH_STAMP)
	rm -f $(DATA)/table.json
	$(MAKE) --no-print-directory $(addprefix bench-table-,$(TABLE))
	$(BENCH_VENV)/bin/python -m benchmarks.report --results=$(DATA)/table.json --write_docs

# One measurement each, so that a lock (MEASURE) is held for some minutes at most.
TABLE := T engines stock spark W csv jsonl E P F S X I G
RECORD = --output=$(DATA)/table.json --rounds=$(ROUNDS)
.PHONY: $(addprefix bench-table-,$(TABLE))
bench-table-T:
	$(BENCH) $(RECORD) --workload=T --rows=4M --peers=loop,loop_readahead,torchbeam
bench-table-engines:
	$(BENCH) $(RECORD) --workload=T --rows=4M --peers=ray_data,daft,torchbeam --name='T beside Ray Data and Daft, 4,000,000 rows'
bench-table-stock:
	$(BENCH) $(RECORD) --workload=T --rows=1M --peers=stock,torchbeam --name="T beside Beam's own handler, 1,000,000 rows"
bench-table-spark:
	$(BENCH) $(RECORD) --workload=T --rows=4M --name='T on Spark, 4,000,000 rows' \
	  --peers=predict_batch_udf,spark_iterator,torchbeam_spark,torchbeam_frame
bench-table-W:
	$(BENCH) $(RECORD) --workload=W --rows=200k --peers=loop,loop_readahead,torchbeam
bench-table-csv:
	$(BENCH) $(RECORD) --workload=C-csv --rows=1M
bench-table-jsonl:
	$(BENCH) $(RECORD) --workload=C-jsonl --rows=1M
bench-table-E:
	$(BENCH) $(RECORD) --workload=E --rows=200k
bench-table-P:
	$(BENCH) $(RECORD) --workload=P --rows=4M
bench-table-F:
	$(BENCH) $(RECORD) --workload=F --rows=400k
bench-table-S:
	$(BENCH) $(RECORD) --workload=S
bench-table-X:
	$(BENCH) $(RECORD) --workload=X --rows=1000 --peers=sentence_transformers,torchbeam
bench-table-I:
	$(BENCH) $(RECORD) --workload=I --rows=1000
bench-table-G:
	$(BENCH) $(RECORD) --workload=G --rows=64M

# The settings of the peers anew.
SEARCHED := loop loop_readahead stock predict_batch_udf spark_iterator ray_data daft elements_loop elements_stock sentence_transformers \
  texts_loop images_loop
bench-search: $(BENCH_STAMP)
	for peer in $(SEARCHED); do $(MEASURE) $(BENCH_VENV)/bin/python -m benchmarks.search --data=$(DATA) --peers=$$peer $(if $(ROWS),--rows=$(ROWS)) || exit; done

# The packages that both environments have get the versions of requirements.lock; Daft needs another tqdm.
bench-lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra image --extra text \
	  -c <(grep -oE '^[^ #]+==[^\\]+' requirements.lock | grep -v '^tqdm==') \
	  pyproject.toml benchmarks/requirements.in -o benchmarks/requirements.lock

template:
	@templates/flex_template.sh $(or $(TEMPLATE),score)

template-metadata: $(STAMP)
	$(BIN)/python templates/metadata.py

api: $(STAMP)
	$(BIN)/python docs/make_api.py

check-image: $(STAMP)
	PYTHON=$(BIN)/python templates/check_image.sh score

# Where pipelines/command/built.py looks for what is built.
BUILT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/torchbeam
NEEDS_JAVA = for tool in java mvn; do \
	  if ! command -v $$tool >/dev/null; then \
	    echo "There is no $$tool on PATH. On Debian: apt-get install openjdk-17-jdk-headless maven" >&2; exit 1; \
	  fi; \
	done

# The copy of pom.xml beside the jars says what they were made from.
kafka: POM := examples/stream/pom.xml
kafka: VERSION := $(shell sed -n 's:.*<kafka.version>\(.*\)</.*:\1:p' examples/stream/pom.xml)
kafka: CACHE := $(BUILT)/kafka
kafka:
	@set -euo pipefail; \
	cmp -s $(POM) '$(CACHE)/$(VERSION)/pom.xml' && exit; \
	$(NEEDS_JAVA); \
	mkdir -p '$(CACHE)'; \
	made=$$(mktemp -d '$(CACHE)/making-XXXXXX'); \
	trap 'rm -rf "$$made"' EXIT; \
	cp $(POM) "$$made/pom.xml"; \
	echo 'Fetching the Kafka broker $(VERSION): 45 MB'; \
	mvn --batch-mode --quiet --file "$$made/pom.xml" package; \
	cp $(POM) "$$made/target/jars/pom.xml"; \
	rm -rf '$(CACHE)/$(VERSION)'; \
	mv "$$made/target/jars" '$(CACHE)/$(VERSION)'

# Built in a folder of its own, so that two versions may be built at once, and moved to its place when it is whole.
spark-job-server: POM := templates/spark/pom.xml
spark-job-server: SPARK_VERSION := $(or $(SPARK_VERSION),$(shell sed -n 's:.*<spark.version>\(.*\)</.*:\1:p' templates/spark/pom.xml))
spark-job-server: CACHE := $(BUILT)/spark-job-server
spark-job-server:
	@set -euo pipefail; \
	$(NEEDS_JAVA); \
	mkdir -p '$(CACHE)'; \
	made=$$(mktemp -d '$(CACHE)/making-XXXXXX'); \
	trap 'rm -rf "$$made"' EXIT; \
	cp $(POM) "$$made/pom.xml"; \
	echo 'Building the job server for Spark $(SPARK_VERSION): some minutes the first time, 300 MB'; \
	mvn --batch-mode --quiet --file "$$made/pom.xml" -Dspark.version='$(SPARK_VERSION)' package; \
	jar=$$(echo "$$made"/target/beam-*-spark-*.jar); \
	mv "$$jar" '$(CACHE)/'; \
	name=$${jar##*/}; mv "$$made/pom.xml" "$(CACHE)/$${name%.jar}.pom.xml"; \
	echo "$(CACHE)/$$name"

# Prism has the version of Beam; it is moved to its place when it is whole.
prism: BEAM_VERSION := $(shell sed -n 's/^apache-beam==\([0-9.]*\).*/\1/p' requirements.lock)
prism: CACHE := $(BUILT)/prism/$(BEAM_VERSION)
prism:
	@set -euo pipefail; \
	if ! command -v go >/dev/null; then echo 'There is no go on PATH; see https://go.dev/doc/install' >&2; exit 1; fi; \
	mkdir -p '$(CACHE)'; \
	made=$$(mktemp -d '$(CACHE)/making-XXXXXX'); \
	trap 'rm -rf "$$made"' EXIT; \
	echo 'Building Prism $(BEAM_VERSION): about five minutes the first time, 66 MB'; \
	GOFLAGS=-mod=mod GOBIN="$$made" go install 'github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM_VERSION)' 2>&1 | \
	  { grep -v downloading >&2 || true; }; \
	mv "$$made/prism" '$(CACHE)/prism'; \
	echo '$(CACHE)/prism'

clean:
	rm -rf $(VENV) $(BENCH_VENV) out build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis templates/spark/target
