# CUDA kernels (csrc/cuda) without a GPU: run by an emulator of thread blocks, and compiled.
NVCC ?= $(shell command -v nvcc)
CUDA_ARCHITECTURES ?= 80 90
EMULATED_CUDA := $(abspath $(BUILD))/emulated_cuda

.PHONY: test-cuda-emulated test-cuda-mutations test-cuda-wrappers count-cuda

test-cuda-emulated: build
	@cmake --build $(BUILD) --target effv2_cuda_tests _cuda_emulated --parallel $(JOBS)
	$(BUILD)/csrc/tests/cuda/effv2_cuda_tests
	EFFV2_TEST_CUDA="$(EMULATED_CUDA)" $(PYTEST) --dist worksteal $(sort $(wildcard tests/test_cuda_*.py)) $(ARGS)
	@$(if $(NVCC),set -e; mkdir -p build/cuda; for architecture in $(CUDA_ARCHITECTURES); do \
	    echo "compiling for sm_$$architecture"; $(NVCC) -std=c++17 -arch=sm_$$architecture -Icsrc -cubin \
	        -o build/cuda/wrappers.sm_$$architecture.cubin csrc/tests/cuda/wrappers.cu; done,\
	    echo "left out: there is no nvcc to compile with")

# Kernels with planted faults, each of which those tests must find.
test-cuda-mutations: build
	@cmake --build $(BUILD) --target _cuda_emulated --parallel $(JOBS)
	$(PY) tests/cuda_faults.py $(BUILD) $(ARGS)

# What the launches of S0 do, by the emulator: products, barriers, and passes of shared memory.
count-cuda: build
	@cmake --build $(BUILD) --target _cuda_emulated --parallel $(JOBS)
	$(PY) scripts/cuda_counts.py $(EMULATED_CUDA) $(ARGS)

# On a GPU, before anything else: whether the instructions do what kernels and the emulator take them to do.
test-cuda-wrappers:
	@mkdir -p build/cuda
	$(or $(NVCC),nvcc) -std=c++17 -arch=native -Icsrc -o build/cuda/wrappers csrc/tests/cuda/wrappers.cu
	build/cuda/wrappers
