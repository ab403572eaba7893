# Two commands matter: `make demo` and `make test`. Both are idempotent: what is done is not done again.
# PYTHON picks the interpreter the virtual environment is made with (3.11 or newer).
# TORCH picks the torch build, e.g. make setup TORCH="torch --index-url <the index of your CUDA version>".

PYTHON ?= python3
TORCH ?= torch==2.13.0
# Processes that run tests. Those that start Ray stay in one of them.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

.PHONY: help setup demo test test-gpu lint bench clean

help:
	@echo "make setup     virtual environment in $(VENV) with torch and latentkiln: $(BIN)/latentkiln"
	@echo "make demo      paints manifests/demo.csv into outputs/demo with the embedded prior"
	@echo "make test      lint, types and every test, with coverage"
	@echo "make test-gpu  the tests that need a CUDA device, and nothing else"
	@echo "make bench     prints ratios that docs/figures.md quotes"
	@echo "make clean     removes $(VENV), caches and built outputs"

setup: $(STAMPS)/package

$(STAMPS)/venv:
	@echo "==> virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentkiln needs Python 3.11 or newer; name one with make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch first and alone, so that nothing else can choose a build.
$(STAMPS)/torch: $(STAMPS)/venv
	@echo "==> $(TORCH)"
	@$(BIN)/python -m pip install --quiet $(TORCH)
	@touch $@

$(STAMPS)/package: $(STAMPS)/torch pyproject.toml
	@echo "==> latentkiln and what it needs"
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(STAMPS)/tools: $(STAMPS)/package
	@echo "==> test tools (pytest, ruff, mypy, hadolint)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/tools tests/real/package-lock.json
	@echo "==> the Khronos glTF validator by npm"
	@npm ci --prefix tests/real --silent --no-audit --no-fund
	@touch $@

demo: setup
	@echo "==> painting manifests/demo.csv into outputs/demo"
	@$(BIN)/latentkiln run manifests/demo.csv --out outputs/demo

lint: $(STAMPS)/dev
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> hadolint"
	@$(BIN)/hadolint Dockerfile

test: lint
	@echo "==> pytest"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder \
		--cov --cov-report=term --cov-fail-under=85

# On a machine with a GPU, after make setup with a torch built for CUDA; libraries that are not installed are named as skipped.
test-gpu: $(STAMPS)/tools
	@echo "==> pytest, the tests marked gpu"
	@$(BIN)/python -m pytest -m gpu tests/gpu

bench: setup
	@$(BIN)/python benchmarks/paint_step.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/overheads.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage* build *.egg-info tests/real/node_modules
	find outputs -mindepth 1 ! -name .gitkeep -delete
