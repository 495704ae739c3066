# What a GPU is given to be measured with, where it has neither compilers nor a network: build/gpu-prepared, of the
# Python, PyTorch and Triton that are beside it.
GPU_PYTHON ?= python3.12
GPU_TORCH ?= 2.11.0
GPU_TRITON ?= 3.6.0
GPU_CAPABILITY ?= 90
GPU_ENVIRONMENT = build/gpu-python/$(notdir $(GPU_PYTHON))-$(GPU_TORCH)-$(GPU_TRITON)

.PHONY: prepare-gpu

prepare-gpu: $(if $(NVCC),$(STAMPS)/test $(GPU_ENVIRONMENT)/done)
	@$(if $(NVCC),$(PY) bench/gpu/prepare.py build/gpu-prepared --python $(GPU_ENVIRONMENT)/bin/python \
	    --capability $(GPU_CAPABILITY) --nvcc $(NVCC) --jobs $(JOBS),$(WITHOUT_NVCC))

$(GPU_ENVIRONMENT)/done:
	@$(GPU_PYTHON) -m venv $(dir $@)
	@$(dir $@)bin/python -m pip install --quiet --disable-pip-version-check torch==$(GPU_TORCH) triton==$(GPU_TRITON) \
	    numpy safetensors
	@touch $@
