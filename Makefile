# make demo    a fresh clone -> a trained IntentRec with its accuracy report
# make test    lint, types and tests
# make results docs/results.md and its figures from what is kept in docs/results
# make keys     docs/keys.md from the classes that check a config
# make bench-peers   our SASRec against RecTools' on MovieLens 1M: ML1M=folder OPTIONS=...
# make bench-peer-models   our models' scores against RecTools' and RecBole's with the same weights
# All set up .venv by themselves. ACCELERATOR=cpu|cuda: chosen by whether nvidia-smi answers.

PYTHON ?= python3
ACCELERATOR ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
VENV := .venv
BIN := $(VENV)/bin

# The CPU build of torch lies in an index of its own; where PIP_FIND_LINKS names a folder of wheels, that is used.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
ifdef PIP_FIND_LINKS
  export UV_FIND_LINKS := $(PIP_FIND_LINKS)
else ifeq ($(ACCELERATOR),cpu)
  INDEX := --index $(TORCH_CPU_INDEX) --index-strategy unsafe-best-match
endif

.PHONY: setup demo test lint results keys s3 bench-peers bench-peer-models lock clean

# Compiled to bytecode at once: where PYTHONDONTWRITEBYTECODE is set, every process would take ten seconds longer to start.
setup: $(VENV)/.installed-$(ACCELERATOR)

$(VENV)/.installed-$(ACCELERATOR): pyproject.toml requirements/$(ACCELERATOR).txt requirements/s3.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	if ls $(VENV)/.installed-* 2>/dev/null | grep -qv -- '-$(ACCELERATOR)$$'; then \
	  $(BIN)/uv pip uninstall --quiet --python $(BIN)/python torch fbgemm-gpu fbgemm-gpu-cpu; fi  # builds share folders
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(INDEX) \
	  --overrides requirements/overrides-$(ACCELERATOR).txt \
	  --constraints requirements/$(ACCELERATOR).txt --editable '.[$(ACCELERATOR),dev]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --requirements requirements/s3.txt
	rm -f $(VENV)/.installed-*
	touch $@

demo: setup
	$(BIN)/intentrec run configs/demo.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Three processes, which wait as much as they compute: one has the tests that share a Ray cluster; tests/conftest.py deals the files.
# What is imported is compiled once, and not in each of some hundred processes, where PYTHONDONTWRITEBYTECODE is set, too.
test: export PYTHONDONTWRITEBYTECODE :=
test: lint
	$(BIN)/pytest --numprocesses=3 --dist=loadscope

results: setup
	$(BIN)/python -m benchmarks.results

keys: setup
	$(BIN)/python -m cluster.keys > docs/keys.md

# An S3 server on this machine, to try s3:// paths with: it prints the variables to set, and keeps its data in build/s3.
s3: setup
	$(BIN)/python -m tests.s3 build/s3 intentrec

# The peers have an environment of their own. OPTIONS: see python -m benchmarks.peers --help.
PEERS := .venv-peers
ML1M ?= data/ml-1m

$(PEERS)/.installed: benchmarks/peers.txt | $(VENV)/.installed-$(ACCELERATOR)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python $(if $(PIP_FIND_LINKS),,--index $(TORCH_CPU_INDEX) \
	  --index-strategy unsafe-best-match) --requirements benchmarks/peers.txt
	touch $@

bench-peers: setup $(PEERS)/.installed
	$(BIN)/python -m benchmarks.peers --source $(ML1M) $(OPTIONS)

bench-peer-models: setup $(PEERS)/.installed
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps --requirement benchmarks/peers-recbole.txt
	$(BIN)/python -m benchmarks.peer_models

# Writes the versions that requirements/ pins anew, from a fresh environment and from the index.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock && build/lock/bin/python -m pip install --quiet uv
	build/lock/bin/uv pip install --python build/lock/bin/python $(INDEX) --overrides requirements/overrides-cpu.txt '.[cpu,dev]'
	(echo '# Locked with: make lock'; build/lock/bin/uv pip freeze --python build/lock/bin/python | grep -v -e '^uv==' -e '^intentrec') \
	  > requirements/cpu.txt
	(echo '# Locked with: make lock'; UV_FIND_LINKS= build/lock/bin/uv pip compile pyproject.toml --extra cuda --extra dev \
	  --python-version 3.11 --no-header --no-annotate --quiet) > requirements/cuda.txt

clean:
	rm -rf $(VENV) $(PEERS) runs
