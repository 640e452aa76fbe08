# Everything happens inside the checkout: Python in .venv, Rust in target. Stamp files in .venv keep
# a second run from repeating the work of the first.

PYTHON ?= python3
ARGS ?=

VENV := $(CURDIR)/.venv
BENCH := $(CURDIR)/.venv-bench
BIN := $(VENV)/bin
RUST_SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find src -name '*.rs')
WHEEL_LIMIT := 2000000

# maturin and pyo3 look for the interpreter here.
export VIRTUAL_ENV := $(VENV)
export PYO3_PYTHON := $(BIN)/python
export PATH := $(BIN):$(PATH)
unexport PYTHONHOME PYTHONPATH

# nextest runs the same tests, faster; it leaves documentation examples to cargo.
NEXTEST := $(shell cargo nextest --version 2>/dev/null)
ifdef NEXTEST
CARGO_TEST := cargo nextest run --cargo-profile checked --locked
else
CARGO_TEST := cargo test --profile checked --locked --lib --bins --tests
endif

ARM := aarch64-unknown-linux-gnu
ARM_PACKAGES := qemu-user gcc-aarch64-linux-gnu

.DELETE_ON_ERROR:
.PHONY: help build demo test test-rust test-python test-arm test-miri lint lint-rust lint-python \
        fmt wheel check-import coverage activations bench bench-models tasks defaults docs \
        clean

help:
	@echo 'make demo          train the character model of examples/char_lm.py'
	@echo 'make test          every test, Rust and Python'
	@echo 'make lint          formats, lints, types, stubs, size of the wheel'
	@echo 'make docs          the site: guides, equations, interface, examples with their pictures'
	@echo 'make bench         race PyTorch, JAX, ONNX Runtime and OpenVINO (installs them: 6 GB)'
	@echo 'make bench-models  race whole models against PyTorch'
	@echo 'make tasks         learn what recurrent nets are judged by, ten seeds each'
	@echo 'make defaults      what the estimators reach as they come, on digits and four series'
	@echo 'make activations   hold sigmoid and tanh of every float32 against exact values'
	@echo 'CONTRIBUTING.md lists the rest.'

# ---- Set-up --------------------------------------------------------------------------------------

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "rnncore needs Python 3.11 or newer; name one: make PYTHON=...")'
	@cargo --version || { echo 'rnncore needs Rust: https://rustup.rs' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'pip>=25.1' 'maturin>=1.9.4,<2'
	touch $@

$(VENV)/.test: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --group test
	touch $@

$(VENV)/.lint: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --group lint
	touch $@

$(VENV)/.coverage: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --group coverage
	touch $@

$(VENV)/.docs: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

$(VENV)/.built: $(VENV)/.created $(RUST_SOURCES)
	$(BIN)/maturin develop --release --locked --extras plot,progress
	touch $@

build: $(VENV)/.built

# ---- The two commands ----------------------------------------------------------------------------

demo: $(VENV)/.built
	$(BIN)/python examples/char_lm.py $(ARGS)

test: test-rust test-python

test-rust:
	$(CARGO_TEST)
	cargo test --profile checked --locked --doc

test-python: $(VENV)/.test $(VENV)/.built
	$(BIN)/python -m pytest $(ARGS)

# ---- Other machines and checkers -----------------------------------------------------------------

test-arm:
	@command -v qemu-aarch64 aarch64-linux-gnu-gcc >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update && apt-get install --yes --no-install-recommends \
	            $(ARM_PACKAGES) libc6-dev-arm64-cross; \
	    else \
	        echo 'test-arm needs the Debian packages $(ARM_PACKAGES) libc6-dev-arm64-cross' >&2; exit 1; \
	    fi; }
	rustup target add $(ARM)
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu' \
	RNNCORE_TEST_LEVELS=portable,neon \
	    cargo test --profile checked --locked --target $(ARM) --lib --tests

# The pool's workers live as long as the process: Miri would call that a leak.
test-miri:
	@cargo +nightly miri --version >/dev/null 2>&1 || \
	    rustup toolchain install nightly --profile minimal --component miri,rust-src
	MIRIFLAGS=-Zmiri-ignore-leaks cargo +nightly miri test --locked --test portable $(ARGS)

# Minutes, so it is no part of `make test`, which tries a sample.
activations:
	cargo run --release --locked --example activations_exhaustive

# ---- Looks ---------------------------------------------------------------------------------------

lint: lint-rust lint-python wheel

lint-rust: $(VENV)/.created
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo clippy --all-targets --locked --features python -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked --document-private-items --features python

lint-python: $(VENV)/.test $(VENV)/.lint $(VENV)/.built
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest rnncore._core

fmt: $(VENV)/.lint
	cargo fmt
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# ---- Packaging -----------------------------------------------------------------------------------

wheel: $(VENV)/.created
	rm -rf dist
	$(BIN)/maturin build --release --locked --out dist --compression-level 9
	$(BIN)/python tools/check_wheel.py dist $(WHEEL_LIMIT)

check-import: $(VENV)/.built
	$(BIN)/python tools/check_import.py

# ---- Coverage ------------------------------------------------------------------------------------

coverage: $(VENV)/.test $(VENV)/.coverage $(VENV)/.built
	bash tools/coverage.sh

# ---- Benchmark -----------------------------------------------------------------------------------

# The peers live in an environment of their own, with the wheel of this checkout beside them: tests
# and looks never need it.
$(BENCH)/.peers: $(VENV)/.created
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet torch onnxruntime openvino jax onnx matplotlib numpy \
	    scikit-learn
	touch $@

$(BENCH)/.wheel: $(BENCH)/.peers $(RUST_SOURCES) $(wildcard python/rnncore/*.py)
	rm -rf $(BENCH)/wheel
	$(BIN)/maturin build --release --locked --out $(BENCH)/wheel
	$(BENCH)/bin/python -m pip install --quiet --force-reinstall --no-deps $(BENCH)/wheel/*.whl
	touch $@

bench: $(BENCH)/.wheel
	$(BENCH)/bin/python benches/bench.py $(ARGS)

bench-models: $(BENCH)/.wheel
	$(BENCH)/bin/python benches/models.py $(ARGS)

# aeon is there for one file of data and never imported: it needs none of what it depends on.
$(VENV)/.tasks: $(VENV)/.created
	$(BIN)/python -m pip install --quiet matplotlib scikit-learn statsmodels
	$(BIN)/python -m pip install --quiet --no-deps aeon
	touch $@

tasks: $(VENV)/.tasks $(VENV)/.built
	$(BIN)/python benches/tasks.py --docs $(ARGS)

defaults: $(VENV)/.tasks $(VENV)/.built
	$(BIN)/python benches/defaults.py $(ARGS)

# ---- Site ----------------------------------------------------------------------------------------

# It runs the examples, which takes minutes; what has not changed since is not run again. Threads of
# the BLAS would take the cores from those of the layers.
docs: $(VENV)/.docs $(VENV)/.built
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -W --keep-going -n docs docs/_build/html
	@echo 'docs/_build/html/index.html'

clean:
	rm -rf $(VENV) $(BENCH) target dist coverage
	rm -rf docs/_build docs/api/generated docs/api/backreferences docs/examples
	find python -name '_core*.so' -delete
