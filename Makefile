# The common walks by name; every build goes through CMakePresets.json. `make help` lists them.
SHELL := bash
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
DEMO_PROMPT ?= "And it came to pass"
DEMO_ARGS ?= --max-tokens 96 --temperature 0.6 --top-p 0.9 --seed 4
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help deps check-deps build demo test test-slow asan cuda bench format check-format tidy results install clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

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

asan: deps build/asan/build.ninja ## run the same tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@cmake --build --preset asan -j $(JOBS)
	@ctest --preset asan -j $(JOBS)

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

install: build ## install below PREFIX (/usr/local)
	@cmake --install build/cpu --prefix $(PREFIX)

clean: ## remove the build folders
	@rm -rf build
