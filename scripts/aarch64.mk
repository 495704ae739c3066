# 64-bit Arm on an x86-64 machine with Debian's package tools: built by Zig's cross compiler, run by QEMU with an
# Arm Python beside it. Everything is unpacked in $(A64); nothing is installed, and no rights are needed.
A64 := build/aarch64
# The oldest that it must run on, that of a Pixel 6, and one with everything that QEMU knows.
A64_CPUS ?= cortex-a53 cortex-a76 max
A64_TOOLCHAIN := -DCMAKE_TOOLCHAIN_FILE="$(CURDIR)/cmake/aarch64-linux.cmake"
# Debian's Python, which the wheel must be built for.
A64_PYTHON := $(A64)/sysroot/usr/bin/python3.11
A64_PLATFORMS := $(foreach glibc,2_28 2_27 2_24 2_17,--platform manylinux_$(glibc)_aarch64) --platform manylinux2014_aarch64
A64_PYTEST := $(A64_PYTHON) -P -m pytest -p no:cacheprovider

.PHONY: aarch64 wheel-aarch64 native-test-aarch64 test-aarch64 project-aarch64 bench-aarch64 hot-aarch64

aarch64: $(A64)/qemu.done $(A64)/sysroot.done $(A64)/site.done $(STAMPS)/aarch64

$(STAMPS)/aarch64: requirements/aarch64.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@

$(A64)/qemu.done: scripts/debian.py | $(PY)
	@$(PY) $< $(A64)/qemu qemu-user
	@touch $@

$(A64)/sysroot.done: scripts/debian.py | $(PY)
	@$(PY) $< $(A64)/sysroot python3.11:arm64 libstdc++6:arm64 libgomp1:arm64
	@touch $@

$(A64)/site.done: requirements/aarch64-site.txt | $(PY)
	@echo "Unpacking Torch and what tests need, for Arm"
	@rm -rf $(A64)/site
	@$(PIP) --no-deps --only-binary=:all: --implementation cp --python-version 3.11 $(A64_PLATFORMS) \
	    --target $(A64)/site -r $<
	@touch $@

wheel-aarch64: $(STAMPS)/aarch64
	@$(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
	    f"wheels for Arm are built by CPython 3.11, and $(PY) is {sys.version.split()[0]}")'
	@rm -rf $(A64)/wheel dist/*_aarch64.whl
	EFFV2_ZIG="$(PURELIB)/ziglang/zig" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) _PYTHON_HOST_PLATFORM=linux-aarch64 \
	    CMAKE_ARGS='$(A64_TOOLCHAIN) -DPYTHON_MODULE_EXTENSION=.cpython-311-aarch64-linux-gnu.so' \
	    $(PY) -m build --wheel --no-isolation --outdir $(A64)/wheel
	@PATH="$(abspath $(VENV))/bin:$$PATH" auditwheel repair --plat auto --wheel-dir dist $(A64)/wheel/*.whl

# A process that forks while it has threads stops QEMU itself: tests that do so are left out.
native-test-aarch64: aarch64
	@EFFV2_ZIG="$(PURELIB)/ziglang/zig" cmake -S . -B $(A64)/native $(A64_TOOLCHAIN) -DCMAKE_BUILD_TYPE=Release \
	    -DEFFV2_PYTHON=OFF -DEFFV2_NATIVE_TESTS=ON
	@cmake --build $(A64)/native --target effv2_native_tests --parallel $(JOBS)
	@set -e; for cpu in $(A64_CPUS); do echo "== $$cpu"; \
	    scripts/on_aarch64.sh $$cpu $(A64)/native/csrc/tests/effv2_native_tests --without fork --without no_more_threads; done

# Every block of every network, and networks, to the bits that are recorded. Torch itself does not run on the
# oldest.
test-aarch64: native-test-aarch64 project-aarch64
	@set -e; for cpu in $(filter-out cortex-a53,$(A64_CPUS)); do echo "== $$cpu"; \
	    PYTHONPATH=$(A64)/project:$(A64)/site PYTHONDONTWRITEBYTECODE=1 scripts/on_aarch64.sh $$cpu \
	        $(A64_PYTEST) tests/test_digests.py -k neon -m "not thorough" $(ARGS); done

# What networks execute, counted by a plugin of QEMU, and LLVM's models of pipelines: bench/aarch64.
A64_BENCH := $(A64)/qemu.done $(A64)/sysroot.done $(A64)/site.done $(A64)/llvm.done $(A64)/rivals.done \
    $(A64)/executed_blocks.so $(STAMPS)/aarch64-bench

$(A64)/llvm.done: scripts/debian.py | $(PY)
	@$(PY) $< $(A64)/llvm llvm-19
	@touch $@

$(A64)/rivals.done: requirements/aarch64-rivals.txt | $(PY)
	@rm -rf $(A64)/rivals
	@$(PIP) --no-deps --only-binary=:all: --implementation cp --python-version 3.11 $(A64_PLATFORMS) \
	    --target $(A64)/rivals -r $<
	@touch $@

$(A64)/executed_blocks.so: bench/aarch64/executed_blocks.c
	@mkdir -p $(@D)
	@$(CC) -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared $< -o $@

$(STAMPS)/aarch64-bench: requirements/aarch64-bench.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@

# The wheel, unpacked.
project-aarch64: wheel-aarch64
	@rm -rf $(A64)/project
	@$(PY) -m zipfile -e dist/*_aarch64.whl $(A64)/project

# What did not change since the last time is not counted again.
bench-aarch64: $(A64_BENCH) project-aarch64
	@$(PY) -m pytest -q bench/aarch64/check_executed_blocks.py
	@$(PY) bench/aarch64/measure.py --jobs $(JOBS) $(ARGS)

# NETWORK, FORMAT, BLOCKS: of which, and how many.
hot-aarch64: $(A64_BENCH) project-aarch64
	@$(PY) bench/aarch64/hot.py --network $(or $(NETWORK),s0) --format $(or $(FORMAT),fp32) --blocks $(or $(BLOCKS),10) $(ARGS)
