# Everything that is done to this repository, each as one command on a fresh machine with Python >= 3.11 and a
# C++17 compiler. Stamp files in the virtual environments make a second run fast.

PYTHON ?= python3
VENV ?= .venv
PARITY_VENV ?= .venv-parity

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
PARITY_BIN := $(PARITY_VENV)/Scripts
else
BIN := $(VENV)/bin
PARITY_BIN := $(PARITY_VENV)/bin
endif

MODEL := smollm2-135m-instruct
PACKAGE := models/$(MODEL)
QUESTION := What is the capital of Japan?

# What an editable install is made from: a change here means building again, Python sources do not.
CXX_FILES := $(shell find custom_ops -name '*.cc' -o -name '*.h' -o -name '*.mm' -o -name '*.metal' | sort)
BUILD_FILES := pyproject.toml bitnet_onnx/__init__.py \
	$(wildcard CMakeLists.txt custom_ops/include/* custom_ops/packaging/*) $(CXX_FILES)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Programs to copy from, and to test them with.
EXAMPLE_FILES := $(wildcard examples/cpp/*.cc examples/cpp/*.h tests/examples/*.cc)

.PHONY: help
help: ## Show the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Environments ------------------------------------------------------------------------------------------

# Dependency groups need pip 25.1.
define make_venv
	@test -e $(1)/pyvenv.cfg || $(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python >= 3.11 is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.x")'
	test -e $(1)/pyvenv.cfg || $(PYTHON) -m venv $(1)
	$(2)/python -m pip install --quiet 'pip>=25.1'
	@touch $(1)/.stamp-venv
endef

$(VENV)/.stamp-venv:
	$(call make_venv,$(VENV),$(BIN))

$(VENV)/.stamp-install: $(VENV)/.stamp-venv $(BUILD_FILES)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-install
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

$(VENV)/.stamp-lint: $(VENV)/.stamp-install
	$(BIN)/python -m pip install --quiet --group lint
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-install
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

$(PARITY_VENV)/.stamp-venv:
	$(call make_venv,$(PARITY_VENV),$(PARITY_BIN))

$(PARITY_VENV)/.stamp-parity: $(PARITY_VENV)/.stamp-venv $(BUILD_FILES)
	$(PARITY_BIN)/python -m pip install --quiet --group parity --editable .
	@touch $@

.PHONY: install
install: $(VENV)/.stamp-install ## Make .venv and install the package, editable

# Work --------------------------------------------------------------------------------------------------

$(PACKAGE)/bitnet_onnx.json: | $(VENV)/.stamp-install
	mkdir -p $(dir $(PACKAGE))
	$(BIN)/bitnet-onnx zoo pull $(MODEL)
	$(BIN)/bitnet-onnx convert $(MODEL) $(PACKAGE)

.PHONY: demo
demo: $(VENV)/.stamp-install $(PACKAGE)/bitnet_onnx.json ## Fetch a small real model, convert it and chat
	@if [ -t 0 ] && [ -t 1 ]; then \
		$(BIN)/bitnet-onnx infer $(PACKAGE) --chat; \
	else \
		$(BIN)/bitnet-onnx infer $(PACKAGE) --chat --prompt "$(QUESTION)"; \
	fi

# Processes that run tests. What the tests of a file share is made once, so a file stays with one of them; in the order of
# their names the many small files of training come last, and both end together.
JOBS ?= 2
PARALLEL := $(if $(filter-out 0 1,$(JOBS)),-n $(JOBS) --dist loadfile --no-loadscope-reorder)

# Threads of OpenBLAS wait for their next product in a loop: two processes with as many as there are cores lose most of
# their time there.
# -P keeps the repository's root off sys.path, where `import converters` would load a second copy.
.PHONY: test
test: $(VENV)/.stamp-test ## Run the tests in JOBS processes (2); coverage of all source folders must be at least 90 %
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -P -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered

SECONDS ?= 60

.PHONY: fuzz
fuzz: $(VENV)/.stamp-test ## Fuzz each reader for SECONDS (60); new inputs stay in build/fuzz
	@for target in gguf safetensors packing; do \
		mkdir -p build/fuzz/$$target && PYTHONPATH=tests/support:tests/fuzz $(BIN)/python -P -m fuzz_$$target \
			-max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=1024 -max_len=8192 -verbosity=0 \
			-artifact_prefix=build/fuzz/$$target- build/fuzz/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

.PHONY: lint
lint: $(VENV)/.stamp-lint ## Check style, types, layers and C++ formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/lint_layers.py
	$(BIN)/mypy
	$(BIN)/mypy tools
	$(if $(CXX_FILES),$(BIN)/clang-format --dry-run -Werror $(CXX_FILES) $(EXAMPLE_FILES))

.PHONY: format
format: $(VENV)/.stamp-lint ## Format Python and C++ in place
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(if $(CXX_FILES),$(BIN)/clang-format -i $(CXX_FILES) $(EXAMPLE_FILES))

.PHONY: parity
parity: $(PARITY_VENV)/.stamp-parity ## Compare with torch and transformers, in an environment of their own
	$(PARITY_BIN)/python -P -m pytest -s -W ignore tests/parity/parity_*.py

# The variable silences a notice of mkdocs-material about its own future.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -P -m mkdocs

.PHONY: docs
docs: $(VENV)/.stamp-docs ## Build the documentation into build/site; a warning is an error
	$(BIN)/python tools/typing_farm.py
	$(DOCS) build --quiet

.PHONY: docs-serve
docs-serve: $(VENV)/.stamp-docs ## Show the documentation at http://127.0.0.1:8000 while pages change
	$(BIN)/python tools/typing_farm.py
	$(DOCS) serve --dev-addr 127.0.0.1:8000

TINY := model_zoo/packages/bitnet-tiny

.PHONY: tiny
tiny: $(VENV)/.stamp-install ## Train the zoo's small ternary model again; it takes most of an hour
	$(BIN)/python -P benchmarks/training/texts.py build/texts
	$(BIN)/bitnet-onnx train model_zoo/recipes/bitnet-tiny.toml
	$(BIN)/bitnet-onnx convert build/bitnet-tiny/model $(TINY) --overwrite

$(VENV)/.stamp-wheel: $(VENV)/.stamp-venv pyproject.toml
	$(BIN)/python -m pip install --quiet --group wheel
	@touch $@

.PHONY: wheel
wheel: $(VENV)/.stamp-wheel ## Build source distribution and wheel into dist/, and check them
	$(BIN)/python -P tools/wheel.py dist

.PHONY: clean
clean: ## Remove what was built; keep the environments and converted models
	rm -rf build dist htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(VENV)/.stamp-install $(PARITY_VENV)/.stamp-parity
