# Every target does its own set-up. `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FRAMEWORKS := .venv-frameworks
TORCH := .venv-torch
BOARD := qemu-mps2-an500
BOARDS := $(notdir $(wildcard firmware/boards/*))
TARGET := thumbv7em-none-eabihf
RUNNERS := $(BOARDS:%=python/cbin_nn/runners/%.elf)
RUNNER := python/cbin_nn/runners/$(BOARD).elf
NATIVE := python/cbin_nn/_native.abi3.so

export CARGO_TERM_COLOR ?= never
export UV_LINK_MODE ?= copy

rust_sources = $(shell find rust Cargo.toml Cargo.lock -name '*.rs' -o -name '*.toml' -o -name '*.lock')
firmware_sources = $(shell find firmware rust/kernels rust/model rust/protocol -path '*/target' -prune -o \
	\( -name '*.rs' -o -name '*.toml' -o -name '*.lock' -o -name '*.x' \) -print)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# ------------------------------------------------------------------------------------------------
# Set-up

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/python scripts/requirements.py dev | $(BIN)/uv pip install --quiet --python $(BIN)/python -r -
	touch $@

$(NATIVE): $(VENV)/.done $(rust_sources) README.md
	@echo "Building the extension; the first time takes two to four minutes"
	VIRTUAL_ENV=$(VENV) $(BIN)/maturin develop --release --uv --quiet
	touch $@

.PHONY: develop
develop: $(NATIVE) ## Build the extension into .venv
	@$(BIN)/cbin-nn --version

python/cbin_nn/runners/%.elf: $(firmware_sources)
	scripts/rust-target.sh $(TARGET)
	cd firmware/boards/$* && cargo build --release --locked
	mkdir -p $(dir $@)
	cp firmware/target/$(TARGET)/release/$* $@

.PHONY: firmware
firmware: $(RUNNERS) ## Build the runner image of every board

.PHONY: trimmed
trimmed: MODEL = tests/fixtures/smallcifar.h5
trimmed: $(NATIVE) ## A runner with one model's operators, in build/trimmed/: make trimmed MODEL=... BOARD=...
	$(BIN)/python scripts/trimmed_firmware.py $(MODEL) --board $(BOARD)

.PHONY: emulator
emulator:
	@scripts/emulator.sh

CAPI_TARGET := thumbv7em-none-eabihf

.PHONY: capi
capi: ## The C library and its header for CAPI_TARGET, in build/capi/
	scripts/rust-target.sh $(CAPI_TARGET)
	cargo build --profile capi --package cbin-nn-capi --target $(CAPI_TARGET) --locked --quiet
	mkdir -p build/capi/$(CAPI_TARGET)
	cp target/$(CAPI_TARGET)/capi/libcbin_nn.a rust/capi/include/cbin_nn.h build/capi/$(CAPI_TARGET)/

.PHONY: capi-header
capi-header: ## Write the C header anew from the code
	CBIN_NN_WRITE_HEADER=1 cargo test --quiet --package cbin-nn-capi --test header

.PHONY: arm-gcc
arm-gcc:
	@scripts/arm-gcc.sh

# Linux wheels are linked against the glibc of manylinux_2_28 by Zig's linker; elsewhere the system's own will do.
ifeq ($(shell uname -s),Linux)
WHEEL_FLAGS := --zig --compatibility manylinux_2_28
WHEEL_TOOLS := $(BIN)/uv pip install --quiet --python $(BIN)/python 'ziglang>=0.13'
endif

.PHONY: wheel
wheel: $(VENV)/.done $(RUNNERS) ## Build a wheel with the runner images inside, in dist/
	$(WHEEL_TOOLS)
	VIRTUAL_ENV=$(VENV) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/maturin build --release --strip --out dist $(WHEEL_FLAGS)

.PHONY: test-wheel
test-wheel: wheel ## Install the wheel into an empty environment and deploy to a simulated board
	$(BIN)/python scripts/test_wheel.py dist/cbin_nn-*-cp310-abi3-*.whl

# ------------------------------------------------------------------------------------------------
# The main job

.PHONY: demo
demo: $(NATIVE) ## Convert, run on the host and on the emulated board, compare, print the figures
	@scripts/rust-target.sh $(TARGET) && $(MAKE) --no-print-directory $(RUNNER) || echo "demo: no runner image; the host part goes on"
	@scripts/emulator.sh || true
	@scripts/cifar10.sh $(BIN)/python build/cifar10
	$(BIN)/python examples/demo.py --data build/cifar10

.PHONY: bench
bench: $(NATIVE) $(RUNNER) emulator ## Instructions by layer and memory on the emulated board; keeps them in bench/record
	$(BIN)/python scripts/bench.py --record

.PHONY: mca
mca: $(RUNNER) ## Estimate the cycles of the hand-scheduled loops on a Cortex-M7 (llvm-mca)
	$(PYTHON) scripts/mca.py $(RUNNER)

# Beside TensorFlow, what `make bench-host` compares with.
$(FRAMEWORKS)/.bench: pyproject.toml $(FRAMEWORKS)/.done
	$(BIN)/python scripts/requirements.py bench | \
		$(BIN)/uv pip install --quiet --python $(FRAMEWORKS)/bin/python -r -
	touch $@

# torch is left out where no interpreter here has it: its wheels take gigabytes.
bench_torch = $(firstword $(wildcard .venv-torch/bin/python $(FRAMEWORKS)/bin/python))
.PHONY: bench-host
bench-host: $(FRAMEWORKS)/.bench $(NATIVE) ## Images a second on this machine, beside onnxruntime, torch, Keras and Larq
	@scripts/cifar10.sh $(BIN)/python build/cifar10
	PYTHONPATH=python $(FRAMEWORKS)/bin/python scripts/bench_host.py --data build/cifar10 \
		--python torch=$(bench_torch) --record bench/record

.PHONY: bench-kernels
bench-kernels: ## Time of each kernel with each set of instructions that this CPU has (criterion)
	cargo bench -p cbin-nn-kernels --features std

# ------------------------------------------------------------------------------------------------
# Checks

.PHONY: lint
lint: $(NATIVE) ## Formatting, clippy, ruff, types, dependency direction
	cargo fmt --all --check
	cd firmware && cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo fmt --manifest-path examples/embed-rust/Cargo.toml --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff format --check python tests examples scripts notebooks
	$(BIN)/ruff check python tests examples scripts notebooks
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest cbin_nn._native
	$(BIN)/python scripts/check_dependencies.py

.PHONY: test-rust
test-rust: $(RUNNER) emulator ## Rust tests, the emulated board's included
	CBIN_NN_RUNNERS=$(abspath $(dir $(RUNNER))) cargo test --workspace --exclude cbin-nn-python --features cbin-nn-model/std --quiet
	cargo test --manifest-path fuzz/Cargo.toml --locked --quiet

.PHONY: test-python
test-python: $(NATIVE) $(RUNNERS) emulator arm-gcc ## Python tests that need no deep-learning framework
	@scripts/cifar10.sh $(BIN)/python build/cifar10
	$(BIN)/python -m pytest -q --ignore tests/frameworks

.PHONY: test
test: lint test-rust test-python ## Every test that needs no deep-learning framework

$(FRAMEWORKS)/.done: pyproject.toml $(VENV)/.done
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(FRAMEWORKS)
	$(BIN)/python scripts/requirements.py frameworks | \
		$(BIN)/uv pip install --quiet --python $(FRAMEWORKS)/bin/python -r -
	touch $@

$(TORCH)/.done: pyproject.toml $(VENV)/.done
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(TORCH)
	$(BIN)/python scripts/requirements.py frameworks-torch | \
		$(BIN)/uv pip install --quiet --python $(TORCH)/bin/python -r -
	touch $@

.PHONY: test-frameworks
test-frameworks: test-keras test-torch ## Tests against real Larq on real TensorFlow, and real PyTorch

.PHONY: test-keras
test-keras: $(FRAMEWORKS)/.done $(NATIVE) ## Tests against real Larq on real TensorFlow
	PYTHONPATH=python $(FRAMEWORKS)/bin/python -m pytest -q tests/frameworks --ignore-glob '*torch*' --ignore-glob '*keras_arguments*'
	PYTHONPATH=python $(FRAMEWORKS)/bin/python -m pytest -q tests/frameworks/test_keras_arguments.py

.PHONY: test-torch
test-torch: $(TORCH)/.done $(NATIVE) ## Tests against real PyTorch (its wheels are 5.5 GB, once)
	PYTHONPATH=$(abspath python) $(TORCH)/bin/python -m pytest -q tests/frameworks/test_torch*.py tests/frameworks/test_readme.py

# Optimized: the emulator takes its time.
AARCH64 = CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"

.PHONY: test-cores-aarch64
test-cores-aarch64:
	scripts/aarch64.sh
	scripts/rust-target.sh aarch64-unknown-linux-gnu
	$(AARCH64) cargo test --release --target aarch64-unknown-linux-gnu --quiet \
		-p cbin-nn-kernels -p cbin-nn-model --features cbin-nn-model/std

$(VENV)/.docs: pyproject.toml $(VENV)/.done
	$(BIN)/python scripts/requirements.py docs | $(BIN)/uv pip install --quiet --python $(BIN)/python -r -
	touch $@

.PHONY: docs
docs: $(VENV)/.docs $(NATIVE) $(RUNNER) emulator ## The documentation site, in build/site/, and the crates' pages; any warning fails
	$(BIN)/jupyter nbconvert --log-level ERROR --execute --to notebook --output-dir docs/notebooks notebooks/0[234]_*.ipynb
	cp notebooks/0[15]_*.ipynb docs/notebooks/ # Needs torch: shown without its outputs.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

.PHONY: fixtures
fixtures: $(NATIVE) ## Remake the test fixtures that need no framework
	$(BIN)/python tests/make_fixture.py

# No isolation: tests read their environment. What a test leaves out under Miri, it says where it does. Of the model, which has
# no unsafe code, the tests that run the kernels in every way.
MIRI = MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test --quiet

.PHONY: miri
miri: ## Run the tests of the kernels and the C interface, and whole models, under Miri (nightly)
	scripts/nightly.sh miri rust-src
	cargo +nightly miri setup
	$(MIRI) --tests -p cbin-nn-kernels & kernels=$$!; \
		$(MIRI) -p cbin-nn-model --features cbin-nn-model/std --test walk --test host every_operator; wait $$kernels
	$(MIRI) -p cbin-nn-capi --test calls

.PHONY: test-cores
test-cores: test-cores-aarch64 ## The kernels on AArch64, Cortex-M0, M3, M7, M33 and RISC-V, emulated
	scripts/test_cores.sh

.PHONY: fuzz-short
fuzz-short: ## Fuzz the file view and every operator's arguments, 20 seconds each (nightly)
	scripts/fuzz.sh 20

.PHONY: fuzz
fuzz: TARGET = view
fuzz: SECONDS = 600
fuzz: ## Fuzz one target as long as asked: make fuzz TARGET=view SECONDS=600
	scripts/fuzz.sh $(SECONDS) $(TARGET)

.PHONY: coverage
coverage: ## Line coverage of kernels and model by their Rust tests; fails below 95 %
	$(PYTHON) scripts/coverage.py --minimum 95

.PHONY: mutants
mutants: ## Check that every committed mutant of the reference kernels fails a test
	$(PYTHON) scripts/mutants.py

.PHONY: mutate-containers
mutate-containers: COUNT = 10000
mutate-containers: JOBS = 2
mutate-containers: $(NATIVE) ## Convert mutants of .h5, .keras, .pt2 and ONNX files, COUNT of each (half an hour)
	$(BIN)/python scripts/mutate_containers.py --count $(COUNT) --jobs $(JOBS)

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target fuzz/target fuzz/artifacts firmware/target $(VENV) $(FRAMEWORKS) $(TORCH) build dist $(NATIVE) $(RUNNERS)
