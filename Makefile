PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider

# All but tensorrt-llm, which lives in an environment of its own.
EXTRAS := llamacpp embedded signing server traces docker kubernetes

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
  --no-annotate --no-emit-index-url
COMPILE := $(LOCK) $(EXTRAS:%=--extra %) --group build pyproject.toml

# PyTorch, which no lock has: it has a wheel for each version of CUDA and one for the CPU, and a machine needs its own.
TORCH ?= torch==2.13.0
REFERENCE := .venv-transformers

# The site of the documentation, and what makes it.
DOCS := .docs
DOCS_VENV := .venv-docs

# As pip leaves what it installs: else each command compiles it anew where PYTHONDONTWRITEBYTECODE is set.
BYTECODE := $(BIN)/python -m compileall -q deployments flows infra tasks

.PHONY: help run test test-slow test-reference check fix docs bench lock clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run.installed ## Set everything up and do the main job: a model, from its source to an answer
	@$(BIN)/enginehouse up
	@done=$$($(BIN)/enginehouse rebuild smollm2-135m) && \
	  echo && echo "How do I count to nine in French?" && \
	  $(BIN)/enginehouse ask smollm2-135m "How do I count to nine in French?" && \
	  echo && echo "$$done"

test: $(VENV)/dev.installed ## Run the fast tests (under 8 minutes on 2 cores)
	$(PYTEST) -n 2 --no-loadscope-reorder -m "not slow"

test-slow: $(VENV)/dev.installed ## Run the slow tests: faults, whole stacks, servers in containers (under 60 minutes)
	$(PYTEST) -n 2 --no-loadscope-reorder -m slow

test-reference: $(REFERENCE)/installed ## Run the tests of kind transformers, beside PyTorch in an environment of its own
	$(REFERENCE)/bin/python -m pytest -p no:cacheprovider tests/tasks/serving/test_transformers_engine.py \
	  tests/tasks/serving/test_shared_decoding.py tests/tasks/serving/test_guide_masks.py
	$(REFERENCE)/bin/python -m pytest -p no:cacheprovider tests/tasks/serving/test_serving.py -k transformers
	$(REFERENCE)/bin/python -m pytest -p no:cacheprovider tests/tasks/kinds/test_reference.py tests/gpu

check: $(VENV)/dev.installed ## Check format, lint, strict types and the walls between the rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --threads 2
	$(BIN)/lint-imports

fix: $(VENV)/dev.installed ## Mend format and lint, as far as a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/run.installed $(DOCS_VENV)/installed ## Make the site of the documentation, with the reference from the code: .docs/site
	$(BIN)/python -m deployments.docs $(DOCS)
	$(DOCS_VENV)/bin/zensical build --strict --config-file $(DOCS)/zensical.toml

bench: $(VENV)/dev.installed ## Measure rebuilds, transfers, a store of 10,000 artifacts, a fleet of 500 models, serving, gates and rollouts
	@$(BIN)/enginehouse up
	@$(BIN)/enginehouse rebuild smollm2-135m > /dev/null
	@$(BYTECODE)
	@$(BIN)/python -m tests.bench
	@$(BIN)/python -m tests.bench_lineage
	@$(BIN)/python -m tests.bench_fleet
	@$(BIN)/python -m tests.bench_transfers
	@$(BIN)/enginehouse down
	@$(BIN)/python -m tests.bench_llamacpp
	@$(BIN)/python -m tests.bench_layer
	@$(BIN)/python -m tests.bench_gateway
	@$(BIN)/python -m tests.bench_load
	@$(BIN)/python -m tests.bench_gates
	@$(BIN)/python -m tests.bench_rollout
	@$(BIN)/python -m tests.bench_shadow

lock: $(VENV)/dev.installed ## Renew all locks from the index that pip is configured with
	index=$$($(BIN)/python -m pip config get global.index-url 2>/dev/null); \
	  export UV_DEFAULT_INDEX=$${PIP_INDEX_URL:-$$index}; test -n "$$UV_DEFAULT_INDEX" || unset UV_DEFAULT_INDEX; \
	  $(COMPILE) -o requirements.lock && $(COMPILE) --group dev -c requirements.lock -o requirements-dev.lock && \
	  $(LOCK) --group docs -o requirements-docs.lock && \
	  echo torch | $(COMPILE) --extra transformers --excludes - -c requirements-dev.lock -o requirements-transformers.lock

clean: ## End the embedded stack and remove what make and enginehouse have made
	-test ! -x $(BIN)/enginehouse || $(BIN)/enginehouse down
	rm -rf $(VENV) $(REFERENCE) $(DOCS_VENV) $(DOCS) .enginehouse *.egg-info .ruff_cache .import_linter_cache

$(VENV)/run.installed: requirements.lock pyproject.toml
	$(call install,requirements.lock)
	@touch $@

$(VENV)/dev.installed: requirements-dev.lock pyproject.toml
	$(call install,requirements-dev.lock)
	@touch $@ $(VENV)/run.installed

$(REFERENCE)/installed: requirements-transformers.lock requirements-dev.lock pyproject.toml
	test -x $(REFERENCE)/bin/python || $(PYTHON) -m venv $(REFERENCE)
	for lock in requirements-dev.lock requirements-transformers.lock; do \
	  $(REFERENCE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $$lock || exit; done
	$(REFERENCE)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(REFERENCE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DOCS_VENV)/installed: requirements-docs.lock
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-docs.lock
	@touch $@

# The lock is complete, so pip has nothing to resolve. Its resolver would look past pins of packages with extras.
define install
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else \
	  "Enginehouse needs Python 3.11 or 3.12, and $(PYTHON) is " + sys.version.split()[0] + \
	  ": make PYTHON=python3.11 (Triton in nvidia-pytriton has no backend for others)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "fetching the packages of $(1), up to 1 GB: some minutes without a word"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BYTECODE)
endef
