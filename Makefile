# make score    set up, train the example model, score a table with it and evaluate the predictions
# make pipeline    set up, then prepare, train, score and evaluate from one file (examples/breast_cancer)
# make test     set up, then lint, types and all tests (JOBS=2 at a time)
# make check    the same without the slow tests, for use while writing
# make fuzz     property tests with random seeds until FUZZ_SECONDS=300 are over or one fails
# make lock     resolve the locks anew
# make kafka    the jars of a Kafka broker for the tests and `make stream` (needs Java and Maven)
# make spark-job-server SPARK_VERSION=3.5.7    the job server for Spark of that version (needs Java and Maven)
# make prism    the Prism runner for streams on one machine (needs Go)
# make clean    remove what the targets made, the virtual environment too
# make template PROJECT=… BUCKET=… [REGION=…] [GPU=1] [RUN=1]    print, or build, the Flex Template for Dataflow
# make template-metadata    write its metadata.json anew
# make api                  write docs/api.md anew from the docstrings
# make check-image          execute its Dockerfile with stand-ins for the public images (root, buildah, debootstrap)

.DEFAULT_GOAL := help
.PHONY: help setup score pipeline test check fuzz services lint types format lock kafka spark-job-server prism clean template template-metadata api \
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
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra dev \
	  pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock \
	  pyproject.toml -o templates/requirements.lock

template:
	@templates/flex_template.sh score

template-metadata: $(STAMP)
	$(BIN)/python templates/metadata.py

api: $(STAMP)
	$(BIN)/python docs/make_api.py

check-image: $(STAMP)
	PYTHON=$(BIN)/python templates/check_image.sh score

# The copy of pom.xml beside the jars says what they were made from.
kafka: POM := examples/stream/pom.xml
kafka: VERSION := $(shell sed -n 's:.*<kafka.version>\(.*\)</.*:\1:p' examples/stream/pom.xml)
kafka: CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/torchbeam/kafka
kafka:
	@set -euo pipefail; \
	cmp -s $(POM) '$(CACHE)/$(VERSION)/pom.xml' && exit; \
	for tool in java mvn; do \
	  if ! command -v $$tool >/dev/null; then \
	    echo "There is no $$tool on PATH. On Debian: apt-get install openjdk-17-jdk-headless maven" >&2; exit 1; \
	  fi; \
	done; \
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
spark-job-server: CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/torchbeam/spark-job-server
spark-job-server:
	@set -euo pipefail; \
	for tool in java mvn; do \
	  if ! command -v $$tool >/dev/null; then \
	    echo "There is no $$tool on PATH. On Debian: apt-get install openjdk-17-jdk-headless maven" >&2; exit 1; \
	  fi; \
	done; \
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
prism: CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/torchbeam/prism/$(BEAM_VERSION)
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
	rm -rf $(VENV) out build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis templates/spark/target
