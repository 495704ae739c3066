# CUDA kernels (csrc/cuda) without a GPU: run by an emulator of thread blocks, and compiled.
NVCC ?= $(shell command -v nvcc)
CUDA_ARCHITECTURES ?= 80 90
ALL_CUDA_ARCHITECTURES := 80 86 89 90 100 120
EMULATED_CUDA := $(abspath $(BUILD))/emulated_cuda
WITHOUT_NVCC = echo "left out: there is no nvcc to compile with"

.PHONY: build-cuda test-cuda-emulated test-cuda-mutations test-cuda-wrappers test-cuda-compiled \
    test-cuda-compiled-all cuda-table count-cuda verify-cuda-races wheel-cuda

test-cuda-emulated: build
	@cmake --build $(BUILD) --target effv2_cuda_tests _cuda_emulated --parallel $(JOBS)
	$(BUILD)/csrc/tests/cuda/effv2_cuda_tests
	EFFV2_TEST_CUDA="$(EMULATED_CUDA)" $(PYTEST) --dist worksteal $(sort $(wildcard tests/test_cuda_*.py)) $(ARGS)
	@$(if $(NVCC),set -e; mkdir -p build/cuda; for architecture in $(CUDA_ARCHITECTURES); do \
	    echo "compiling for sm_$$architecture"; $(NVCC) -std=c++17 -arch=sm_$$architecture -Icsrc -cubin \
	        -o build/cuda/wrappers.sm_$$architecture.cubin csrc/tests/cuda/wrappers.cu; done,$(WITHOUT_NVCC))

# The module for GPUs, in place, for some architectures: CUDA_ARCHITECTURES=90.
build-cuda: $(STAMPS)/test
	@cmake -S . -B build/cuda-module $(CMAKE_PYTHON) -DCMAKE_BUILD_TYPE=Release -DEFFV2_CUDA=ON \
	    -DEFFV2_CUDA_ARCHITECTURES="$(subst $() $(),;,$(CUDA_ARCHITECTURES))" \
	    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/effv2_kernels"
	@cmake --build build/cuda-module --target _cuda --parallel $(JOBS)

# Kernels with planted faults, each of which those tests must find.
test-cuda-mutations: build
	@cmake --build $(BUILD) --target _cuda_emulated --parallel $(JOBS)
	$(PY) tests/cuda_faults.py $(BUILD) $(ARGS)

# What the launches of S0 do, by the emulator: products, barriers, and passes of shared memory.
count-cuda: build
	@cmake --build $(BUILD) --target _cuda_emulated --parallel $(JOBS)
	$(PY) bench/cuda/counts.py $(EMULATED_CUDA) $(ARGS)

# On a GPU, before anything else: whether the instructions do what kernels and the emulator take them to do.
test-cuda-wrappers:
	@mkdir -p build/cuda
	$(or $(NVCC),nvcc) -std=c++17 -arch=native -Icsrc -o build/cuda/wrappers csrc/tests/cuda/wrappers.cu
	build/cuda/wrappers

# Every kernel for some architectures: no spills, the instructions that were meant, and the registers and
# instructions that are recorded.
test-cuda-compiled: $(if $(NVCC),$(STAMPS)/cuda)
	@$(if $(NVCC),$(PY) scripts/compiled_kernels.py --nvcc $(NVCC) --architectures $(CUDA_ARCHITECTURES),$(WITHOUT_NVCC))

# The same for all that wheels have (10 minutes).
test-cuda-compiled-all:
	@$(MAKE) test-cuda-compiled CUDA_ARCHITECTURES="$(ALL_CUDA_ARCHITECTURES)"

# Records them, for all architectures that wheels have (10 minutes).
cuda-table: $(STAMPS)/cuda
	@$(PY) scripts/compiled_kernels.py --nvcc $(or $(NVCC),nvcc) --record

$(STAMPS)/cuda: requirements/cuda.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@

# A second opinion on races, of small launches.
verify-cuda-races: $(if $(NVCC),$(STAMPS)/cuda-races)
	@$(if $(NVCC),$(PY) scripts/verify_races.py --nvcc $(NVCC),$(WITHOUT_NVCC))

$(STAMPS)/cuda-races: requirements/cuda-races.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@

# Wheels with the kernels, for x86-64, in dist/cuda/, and what they say where there is no GPU. PYTHONS as for wheels.
wheel-cuda: $(if $(NVCC),$(STAMPS)/wheels $(STAMPS)/cuda)
	@$(if $(NVCC),$(WHEELS) --cuda,$(WITHOUT_NVCC))
	@$(if $(NVCC),$(PY) scripts/try_cuda_wheels.py $(if $(PYTHONS),--pythons $(PYTHONS)))
