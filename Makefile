# Everything happens in $(VENV) and $(BUILD); nothing outside this folder is touched.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build/native
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# Processes that run tests, of about 1.5 GB each.
WORKERS ?= $(shell echo $$(($(JOBS) < 8 ? $(JOBS) : 8)))

MAKEFLAGS += --no-print-directory
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
# A file's tests stay together, for what they share; those of test-all are few and long.
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
PURELIB = $(abspath $(shell $(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'))
# Where headers of other libraries are unpacked, if they are; CMake finds the system's without that.
CMAKE_C_API = -DEFFV2_C_API=ON -DCMAKE_PREFIX_PATH="$(CURDIR)/build/json/usr;$(CURDIR)/build/runner-headers/usr"
# A program of one piece is something for Linux.
RUNNER := $(if $(filter Linux,$(shell uname -s)),ON,OFF)
CMAKE_RUNNER = $(CMAKE_C_API) -DEFFV2_RUNNER=ON
CMAKE_PYTHON = -DPython_EXECUTABLE="$(abspath $(PY))" -Dpybind11_DIR="$$($(PY) -m pybind11 --cmakedir)"

.PHONY: help demo test test-all test-emulated test-ahead lint bench rivals targets roofline docs build native-test c-library c-api runner jni-headers fuzz sanitize wheel clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo     read handwritten digits and a photograph, plain and optimised"
	@echo "              (CHECKPOINT=path.pth or .safetensors: with trained ImageNet weights)"
	@echo "make test     build, and test every module, block, ISA and error (8 minutes on two cores)"
	@echo "make test-all what make test leaves out: more cases of the same (another 8 minutes)"
	@echo "make test-emulated  the tests of AVX-512's and NEON's code, emulated by AVX2 (5 minutes)"
	@echo "make test-aarch64  the tests of 64-bit Arm, under QEMU with an Arm Python (about 40 minutes);"
	@echo "              make test-aarch64-quick: some of them (8 minutes)"
	@echo "make bench-aarch64  count what networks execute on 64-bit Arm, here and in ncnn (15 minutes; later only"
	@echo "              what changed), and model their time; make hot-aarch64: what most of that is"
	@echo "make test-cuda-emulated  CUDA kernels and networks, run by an emulator of thread blocks (5 minutes);"
	@echo "              make test-cuda-wrappers: the instructions that they are made of, on a GPU"
	@echo "make test-cuda-compiled  compile every CUDA kernel for two GPUs: registers and instructions as recorded"
	@echo "              (3 minutes, needs nvcc); make test-cuda-compiled-all: for all (10 minutes);"
	@echo "              make cuda-table: record them, for all"
	@echo "make build-cuda  the module with CUDA kernels, in place (CUDA_ARCHITECTURES=90: for one kind of GPU)"
	@echo "make verify-cuda-races  have small launches proved free of races (2 minutes, needs nvcc)"
	@echo "make test-cuda-mutations  the same with planted faults, each of which must be found (15 minutes)"
	@echo "make count-cuda  what each launch of S0 does, and where it meets in banks of shared memory (1 minute)"
	@echo "make test-ahead  compile every launch of the GPU kernels for every dtype and GPU (30 minutes)"
	@echo "make bench    time every block and whole networks           (about 1 minute)"
	@echo "make rivals   compare with eager, torch.compile, ONNX Runtime and OpenVINO (15 minutes)"
	@echo "make targets  measure every speed target and say which are met (about 12 minutes)"
	@echo "make prepare-gpu  compile what bench/gpu/run_all.py takes to a GPU that has no compilers, in"
	@echo "              build/gpu-prepared (half an hour, needs nvcc; GPU_PYTHON=python3.12)"
	@echo "make roofline draw every block below the roofs of this machine (about 1 minute)"
	@echo "make study    search for networks on Fashion-MNIST, and compare what is found (SEEDS=0: of one seed,"
	@echo "              90 minutes each); make study-why: the same with other budgets, half an hour each;"
	@echo "              make study-table: the tables and the picture in docs/search.md"
	@echo "make docs     make the pages of docs/ that are made from tests and docstrings"
	@echo "make lint     ruff, mypy and clang-format"
	@echo "make sanitize native tests under the address, undefined-behaviour and thread sanitizers"
	@echo "make c-api    the C library libeffv2, without Python; PREFIX=folder: also install it there"
	@echo "make runner   effv2-run, a program of one piece that runs saved networks, in build/runner"
	@echo "make runner-aarch64  the same for phones and other 64-bit Arm, in build/aarch64/runner"
	@echo "make fuzz     any bytes as a saved network, under sanitizers (1 minute); FUZZ_SECONDS=3600: so long"
	@echo "make build    only the compiled module, in place; quick to repeat"
	@echo "make wheel    a source distribution in dist/, and a wheel made of it"
	@echo "make wheels   wheels for x86-64 and 64-bit Arm and every CPython that can be had, in dist/, and try them"
	@echo "make wheel-aarch64  those for 64-bit Arm alone, untried"
	@echo "make wheel-cuda  those for x86-64 with CUDA kernels, in dist/cuda (needs nvcc)"
	@echo "make macos    compile and link everything for Apple silicon, where nothing of it has run yet"
	@echo "make clean    remove what was built; make distclean: the environment as well"

demo: build
	@$(PY) -m effv2_kernels demo $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

test: build native-test c-library jni-headers
	$(PYTEST) -m "not thorough" $(ARGS)

test-all: build c-library
	$(PYTEST) --dist worksteal -m thorough $(ARGS)

# AVX-512's and NEON's code on any x86 processor with AVX2: a test program and a module that only tests load.
test-emulated: build
	@cmake --build $(BUILD) --target effv2_emulating --parallel $(JOBS)
	$(BUILD)/csrc/tests/effv2_emulating_tests
	EFFV2_TEST_NATIVE="$(abspath $(BUILD))/emulating" $(PYTEST) -k emulated -m "not thorough" $(ARGS)

test-ahead: build
	EFFV2_AHEAD=all $(PY) -m pytest tests/test_triton_ahead.py $(ARGS)

lint: $(STAMPS)/lint
	$(VENV)/bin/pre-commit run --all-files --show-diff-on-failure

bench: build
	$(PY) -m pytest bench --benchmark-only $(ARGS)

rivals: build $(STAMPS)/bench
	@mkdir -p build
	$(PY) -m pytest bench/bench_network.py --benchmark-only --rivals --rivals-json build/rivals.json $(ARGS)

targets: build $(STAMPS)/bench
	@mkdir -p build
	$(PY) -m effv2_kernels.benchmarking.targets --json build/targets.json $(ARGS)

roofline: build $(STAMPS)/bench
	@mkdir -p build
	$(PY) bench/roofline.py --json build/roofline.json $(ARGS)

docs: $(STAMPS)/test
	@$(PY) scripts/situations.py
	@$(PY) scripts/api.py

build: $(BUILD)/CMakeCache.txt
	@cmake --build $(BUILD) --target _native --parallel $(JOBS)

native-test: $(BUILD)/CMakeCache.txt
	@cmake --build $(BUILD) --target effv2_native_tests --parallel $(JOBS)
	@ctest --test-dir $(BUILD) --output-on-failure --parallel $(WORKERS)

# For tests, of the same objects as the module: the library, and the program around it.
c-library: $(BUILD)/CMakeCache.txt
	@cmake --build $(BUILD) --target effv2_shared effv2_static $(if $(filter ON,$(RUNNER)),effv2_run) --parallel $(JOBS)

c-api: build/json.done
	@cmake -S . -B build/c-api -DCMAKE_BUILD_TYPE=Release -DEFFV2_PYTHON=OFF $(CMAKE_C_API)
	@cmake --build build/c-api --target effv2_shared effv2_static --parallel $(JOBS)
	@$(if $(PREFIX),cmake --install build/c-api --component c_api --prefix "$(PREFIX)",ls build/c-api/libeffv2.*)

# The JSON library that saved networks are read with, headers alone: the system's, or else Debian's.
build/json.done: scripts/debian.py
	@mkdir -p build
	@test -e /usr/include/nlohmann/json.hpp || pkg-config --exists nlohmann_json \
	    || $(PYTHON) $< build/json nlohmann-json3-dev
	@touch $@

runner: build/json.done build/runner-headers.done
	@cmake -S . -B build/runner -DCMAKE_BUILD_TYPE=Release -DEFFV2_PYTHON=OFF $(CMAKE_RUNNER)
	@cmake --build build/runner --target effv2_run --parallel $(JOBS)
	@ls -l build/runner/effv2-run

# Those that the program reads its options and pictures with: the system's, or else Debian's.
build/runner-headers.done: scripts/debian.py
	@rm -rf build/runner-headers
	@mkdir -p build/runner-headers/usr/include
	@if test -e /usr/include/CLI/CLI.hpp && test -e /usr/include/stb/stb_image.h; then \
	    ln -s /usr/include/CLI /usr/include/stb build/runner-headers/usr/include/; \
	    else $(PYTHON) $< build/runner-headers libcli11-dev libstb-dev; fi
	@touch $@

# Android's jni.h, with which examples/android is compiled; where it cannot be had, its test is left out.
jni-headers: build/jni.done
build/jni.done: scripts/debian.py
	@mkdir -p build
	@$(PYTHON) $< build/jni android-libnativehelper-dev || echo "without jni.h, examples/android is not compiled"
	@touch $@

# What it finds becomes a file of csrc/tests/corpus, which native tests read on every run.
FUZZ_RUNS ?= 8000
FUZZ_SECONDS ?=
CLANGXX = $(or $(shell command -v clang++-19 || command -v clang++),$(CURDIR)/build/clang/usr/bin/clang++-19)
fuzz: export LD_LIBRARY_PATH := $(CURDIR)/build/clang/lacking$(if $(LD_LIBRARY_PATH),:$(LD_LIBRARY_PATH))
fuzz: build/json.done build/clang.done
	@cmake -S . -B build/fuzz -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$(CLANGXX)" -DEFFV2_PYTHON=OFF \
	    -DEFFV2_FUZZ=ON -DEFFV2_SANITIZE=address,undefined $(CMAKE_C_API)
	@cmake --build build/fuzz --target effv2_fuzz_load --parallel $(JOBS)
	@mkdir -p build/fuzz/found
	ASAN_OPTIONS=allocator_may_return_null=1 build/fuzz/effv2_fuzz_load build/fuzz/found csrc/tests/corpus \
	    -max_len=65536 -timeout=20 -rss_limit_mb=4096 -artifact_prefix=build/fuzz/ -print_final_stats=1 \
	    $(if $(FUZZ_SECONDS),-max_total_time=$(FUZZ_SECONDS),-runs=$(FUZZ_RUNS))

# The system's clang, or else Debian's, unpacked.
build/clang.done: scripts/debian.py
	@mkdir -p build
	@command -v clang++-19 clang++ > /dev/null || $(PYTHON) $< build/clang clang-19 libclang-rt-19-dev
	@touch $@

sanitize: build/json.done
	@scripts/check_prerequisites.sh "$(PYTHON)"
	@set -e; for kind in address,undefined thread; do \
	    echo "== -fsanitize=$$kind"; \
	    cmake -S . -B build/$$kind -DCMAKE_BUILD_TYPE=Release \
	        -DEFFV2_PYTHON=OFF -DEFFV2_NATIVE_TESTS=ON -DEFFV2_SANITIZE=$$kind $(CMAKE_C_API); \
	    cmake --build build/$$kind --target effv2_native_tests --parallel $(JOBS); \
	    ctest --test-dir build/$$kind --output-on-failure --parallel $(WORKERS); \
	done

wheel: $(STAMPS)/test
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(PY) -m build --outdir dist

# The module is built into the package's own folder; the .pth file makes that folder importable.
$(BUILD)/CMakeCache.txt: $(STAMPS)/test build/json.done $(if $(filter ON,$(RUNNER)),build/runner-headers.done)
	@rm -f $@
	@cmake -S . -B $(BUILD) $(CMAKE_PYTHON) $(CMAKE_C_API) -DEFFV2_RUNNER=$(RUNNER) -DCMAKE_BUILD_TYPE=Release -DEFFV2_NATIVE_TESTS=ON \
	    -DEFFV2_SIMDE="$(PURELIB)/cmeel.prefix/include" \
	    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/effv2_kernels"

$(PY):
	@scripts/check_prerequisites.sh "$(PYTHON)"
	@echo "Making the environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# torch comes first and pinned, so that nothing that is installed later brings another one.
$(STAMPS)/torch: requirements/torch.txt | $(PY)
	@mkdir -p $(STAMPS)
	@echo "Installing torch (the first time, this takes a few minutes)"
	@$(PIP) -r $<
	@touch $@

$(STAMPS)/test: requirements/build.txt requirements/test.txt requirements/no-deps.txt $(STAMPS)/torch
	@scripts/check_prerequisites.sh $(PY)
	@echo "Installing what the build and the tests need"
	@$(PIP) --no-deps -r requirements/no-deps.txt
	@$(PIP) -r requirements/build.txt -r requirements/test.txt
	@echo "$(CURDIR)" > "$(PURELIB)/effv2_kernels.pth"
	@touch $@

$(STAMPS)/lint: requirements/lint.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@

$(STAMPS)/bench: requirements/bench.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@

include scripts/wheels.mk
include scripts/aarch64.mk
include scripts/cuda.mk
include scripts/gpu.mk
include scripts/search.mk

clean:
	rm -rf build dist *.egg-info effv2_kernels/_*.so .benchmarks

distclean: clean
	rm -rf $(VENV)
