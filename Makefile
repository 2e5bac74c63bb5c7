# The verbs a developer types. Needs Python 3.11+ (with venv and headers), a Rust toolchain, make and a C compiler;
# everything else goes into .venv. Options: PYTHON=/path/to/python3, PYTEST_ARGS="-k name", CARGO_TEST_ARGS="-p dwcp-proto".

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements-dev.lock
DEMO_OUT ?= demo-out
PYTEST_ARGS ?=
CARGO_TEST_ARGS ?= --workspace

ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; exit; fi; \
done; echo python3)
endif

# One target directory for every build, also those that pip runs from a copy of the tree.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# PyO3 asks this interpreter, the same in every build, so that changing between them recompiles nothing.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PIP := $(BIN)/python -m pip
WHEEL_DIR := build/wheel
SOURCES := $(shell find rust src -type d \( -name target -o -name __pycache__ -o -name '*.egg-info' \) -prune \
    -o -type f ! -name '*.so' ! -name '*.c' -print) setup.py pyproject.toml MANIFEST.in Cargo.toml Cargo.lock README.md

say = @printf '\n== %s\n' "$(1)"

.PHONY: help demo lab test check bench build lint-rust lint-python stubs licences clean

help:
	@echo 'make demo    build, install into .venv and run the demonstration; its report goes to $(DEMO_OUT)/'
	@echo 'make test    build, install into .venv, then every test: cargo, then pytest on the installed wheel'
	@echo 'make check   formatters, linters, types, stubs against the built modules, licences'
	@echo 'make lab     the program of the link lab, for tests and benchmarks that run as root (docs/link-lab.md)'
	@echo 'make bench   the benchmarks; results go to benchmarks/results/ (those of deltas and of the selector need more: docs/performance.md)'
	@echo 'make clean   remove .venv, build and target'

demo: $(VENV)/.demo
	$(call say,dwcp demo)
	$(BIN)/dwcp demo --out $(DEMO_OUT)

lab:
	$(call say,link lab)
	cargo build --locked --release -p dwcp-linklab

test: $(VENV)/.dev lab
	$(call say,cargo test)
	cargo test --locked $(CARGO_TEST_ARGS)
	$(call say,every order of threads)
	cargo run --locked --quiet --manifest-path rust/loom/Cargo.toml
	$(call say,pytest on the installed wheel)
	cd tests && ../$(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint-rust lint-python stubs licences

bench: $(VENV)/.dev
	for bench in codec loopback v1_vs_v3 versions; do echo "== $$bench"; $(BIN)/python "benchmarks/bench_$$bench.py" || exit; done

build: $(VENV)/.wheel

lint-rust: $(VENV)/.tools
	$(call say,cargo fmt and clippy)
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo fmt --manifest-path rust/loom/Cargo.toml --check
	cargo clippy --locked --manifest-path rust/loom/Cargo.toml -- -D warnings

lint-python: $(VENV)/.dev
	$(call say,ruff and mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# From a folder without sources, so that stubs and modules are both those of the installed wheel.
stubs: $(VENV)/.dev
	$(call say,stubs against the built modules)
	@printf '[mypy]\n' > build/stubtest.ini
	cd $(WHEEL_DIR) && ../../$(BIN)/python -m mypy.stubtest --mypy-config-file ../stubtest.ini \
	    --allowlist ../../tools/stubtest-allowlist.txt --ignore-unused-allowlist dwcp_fast._core dwcp_fast.v1._v1engine

licences: $(VENV)/.dev
	$(call say,licences)
	$(BIN)/python tools/check_licenses.py

clean:
	rm -rf $(VENV) build target src/*.egg-info
	find src -name '*.so' -delete

$(VENV)/.tools: $(LOCK)
	$(call say,prerequisites)
	$(PYTHON) tools/check_prerequisites.py
	$(call say,virtual environment in $(VENV) with the build tools)
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet --constraint $(LOCK) setuptools cython maturin
	@touch $@

# build/lib* is removed because setuptools packs whatever an earlier build left there.
$(VENV)/.wheel: $(VENV)/.tools $(SOURCES)
	$(call say,wheel: Rust then Cython - minutes the first time)
	rm -rf build/lib* $(WHEEL_DIR)
	$(PIP) wheel --verbose --no-deps --no-build-isolation --wheel-dir $(WHEEL_DIR) .
	$(PIP) install --quiet --no-deps --force-reinstall $(WHEEL_DIR)/*.whl
	@touch $@

$(VENV)/.demo: $(VENV)/.wheel
	$(call say,dependencies of the demonstration)
	$(PIP) install --quiet --constraint $(LOCK) "$$(echo $(WHEEL_DIR)/*.whl)[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.wheel
	$(call say,dependencies of tests and checks)
	$(PIP) install --quiet --constraint $(LOCK) "$$(echo $(WHEEL_DIR)/*.whl)[demo,object-store,openfeature,otel,prometheus,train,test,dev]"
	@touch $@
