# CUDA kernels (csrc/cuda) without a GPU: run by an emulator of thread blocks, and compiled.
NVCC ?= $(shell command -v nvcc)
CUDA_ARCHITECTURES ?= 80 90

.PHONY: test-cuda-emulated test-cuda-wrappers

test-cuda-emulated: $(BUILD)/CMakeCache.txt
	@cmake $(BUILD) >/dev/null
	@cmake --build $(BUILD) --target effv2_cuda_tests --parallel $(JOBS)
	$(BUILD)/csrc/tests/cuda/effv2_cuda_tests $(ARGS)
	@$(if $(NVCC),set -e; mkdir -p build/cuda; for architecture in $(CUDA_ARCHITECTURES); do \
	    echo "compiling for sm_$$architecture"; $(NVCC) -std=c++17 -arch=sm_$$architecture -Icsrc -cubin \
	        -o build/cuda/wrappers.sm_$$architecture.cubin csrc/tests/cuda/wrappers.cu; done,\
	    echo "left out: there is no nvcc to compile with")

# On a GPU, before anything else: whether the instructions do what kernels and the emulator take them to do.
test-cuda-wrappers:
	@mkdir -p build/cuda
	$(or $(NVCC),nvcc) -std=c++17 -arch=native -Icsrc -o build/cuda/wrappers csrc/tests/cuda/wrappers.cu
	build/cuda/wrappers
