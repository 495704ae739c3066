# 64-bit Arm on an x86-64 machine with Debian's package tools: built by Zig's cross compiler, run by QEMU with an
# Arm Python beside it. Everything is unpacked in $(A64); nothing is installed, and no rights are needed.
A64 := build/aarch64
# The oldest that it must run on, that of a Pixel 6, and one with everything that QEMU knows.
A64_CPUS ?= cortex-a53 cortex-a76 max
A64_TOOLCHAIN := -DCMAKE_TOOLCHAIN_FILE="$(CURDIR)/cmake/aarch64-linux.cmake"
# Debian's Python. The wheel that runs in it is built by $(PY), of the same version.
A64_PYTHON := $(A64)/sysroot/usr/bin/python3.11
A64_PLATFORMS := $(foreach glibc,2_28 2_27 2_24 2_17,--platform manylinux_$(glibc)_aarch64) --platform manylinux2014_aarch64
A64_PYTEST := $(A64_PYTHON) -P -m pytest -p no:cacheprovider
# A64_TORCH: a folder with another Torch than that of site/, and a colon.
A64_RUN = PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$(A64)/project:$(A64_TORCH)$(A64)/site scripts/on_aarch64.sh $$cpu

A64_PIP := $(PIP) --no-deps --only-binary=:all: --implementation cp --python-version 3.11 $(A64_PLATFORMS)

.PHONY: aarch64 native-tests-aarch64 native-test-aarch64 runner-aarch64 test-runner-aarch64 test-aarch64 \
    test-aarch64-quick wheel-of-this-python-aarch64 try-wheel-aarch64 try-oldest-aarch64 try-fp16-aarch64 \
    digests-aarch64 bench-aarch64 hot-aarch64

aarch64: $(A64)/qemu.done $(A64)/sysroot.done $(A64)/site.done $(STAMPS)/wheels

$(A64)/qemu.done: scripts/debian.py | $(PY)
	@$(PY) $< $(A64)/qemu qemu-user
	@touch $@

$(A64)/sysroot.done: scripts/debian.py | $(PY)
	@$(PY) $< $(A64)/sysroot python3.11:arm64 libstdc++6:arm64 libgomp1:arm64
	@touch $@

$(A64)/site.done: requirements/aarch64-site.txt | $(PY)
	@echo "Unpacking Torch and what tests need, for Arm"
	@rm -rf $(A64)/site
	@$(A64_PIP) --target $(A64)/site -r $<
	@touch $@

# They stand before those of site/.
$(A64)/oldest.done: requirements/oldest.txt | $(PY)
	@echo "Unpacking the oldest Torch, for Arm"
	@rm -rf $(A64)/oldest
	@$(A64_PIP) --target $(A64)/oldest -r $<
	@touch $@

runner-aarch64: build/json.done build/runner-headers.done $(STAMPS)/wheels
	@EFFV2_ZIG="$(ZIG)" cmake -S . -B $(A64)/runner -DCMAKE_BUILD_TYPE=Release -DEFFV2_PYTHON=OFF \
	    -DCMAKE_TOOLCHAIN_FILE="$(CURDIR)/cmake/aarch64-linux-static.cmake" $(CMAKE_RUNNER)
	@EFFV2_ZIG="$(ZIG)" cmake --build $(A64)/runner --target effv2_run --parallel $(JOBS)
	@ls -l $(A64)/runner/effv2-run

# The wheel of this environment's Python alone, in dist/.
wheel-of-this-python-aarch64:
	@$(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
	    f"the Python for Arm is CPython 3.11, and $(PY), which builds its wheel, is {sys.version.split()[0]}")'
	@$(MAKE) wheel-aarch64 PYTHONS="$(PY)"

# The native tests, with the engine of the wheel.
native-tests-aarch64: aarch64 wheel-of-this-python-aarch64 build/json.done
	@EFFV2_ZIG="$(ZIG)" cmake -S . -B $(A64)/native $(A64_TOOLCHAIN) -DCMAKE_BUILD_TYPE=Release \
	    -DEFFV2_PYTHON=OFF -DEFFV2_NATIVE_TESTS=ON -DEFFV2_ENGINE="$(CURDIR)/build/wheels/aarch64/engine" $(CMAKE_C_API)
	@EFFV2_ZIG="$(ZIG)" cmake --build $(A64)/native --target effv2_native_tests --parallel $(JOBS)

# A process that forks while it has threads stops QEMU itself: tests that do so are left out.
A64_NATIVE = scripts/on_aarch64.sh $$cpu $(A64)/native/csrc/tests/effv2_native_tests --without fork --without no_more_threads
native-test-aarch64: native-tests-aarch64
	@set -e; for cpu in $(A64_CPUS); do echo "== $$cpu"; $(A64_NATIVE); done

# Every block and networks, to the bits that are recorded, and what is true of fp16 alone. Torch itself does not run
# on the oldest processor.
A64_TORCH_CPUS = $(filter-out cortex-a53,$(A64_CPUS))
test-aarch64: native-test-aarch64
	@$(MAKE) test-runner-aarch64
	@$(MAKE) try-wheel-aarch64 A64_CASES=neon A64_TRY_CPUS="$(A64_TORCH_CPUS)"
	@$(MAKE) try-fp16-aarch64 A64_TRY_CPUS="$(A64_TORCH_CPUS)"

# Some of that, in minutes: that fp16 is refused where it must be, what runs in it, and bits.
A64_QUICK_HALVES := test_blocks or last_value or one_call or beyond or without_half
test-aarch64-quick: native-tests-aarch64
	@cpu=cortex-a53; echo "== $$cpu"; $(A64_NATIVE) dispatch. c_api. c_api_refused. overflow.
	@cpu=cortex-a76; echo "== $$cpu"; $(A64_NATIVE) dispatch. c_api. c_api_refused. overflow. simd. network.in_halves
	$(A64_UNPACK)
	@cpu=cortex-a76; $(A64_RUN) $(A64_PYTEST) tests/test_halves.py -k "fp16 and ($(A64_QUICK_HALVES))"
	@cpu=cortex-a76; $(A64_RUN) $(A64_PYTEST) tests/test_digests.py -m "not thorough" \
	    -k "neon and test_network and s0-neon"

define A64_UNPACK
@ls dist/*-cp311-*_aarch64.whl >/dev/null
@rm -rf $(A64)/project
@$(PY) -m zipfile -e dist/*-cp311-*_aarch64.whl $(A64)/project
endef

# effv2-run, to the bits of the wheel in dist/; networks and images are made by $(PY).
test-runner-aarch64: build aarch64 runner-aarch64
	$(A64_UNPACK)
	$(PY) -m pytest tests/runner_on_aarch64.py $(ARGS)

# The wheel in dist/ of Debian's Python, with the newest Torch and, networks alone, the oldest.
A64_CASES ?= neon and network
A64_TRY_CPUS ?= cortex-a76
A64_TRY = $(A64_RUN) $(A64_PYTEST) tests/test_digests.py -m "not thorough" $(ARGS)
try-wheel-aarch64: aarch64 $(A64)/oldest.done
	$(A64_UNPACK)
	@set -e; for cpu in $(A64_TRY_CPUS); do echo "== $$cpu"; $(A64_TRY) -k "$(A64_CASES)"; done
	@$(MAKE) try-oldest-aarch64 A64_TORCH=$(A64)/oldest:
try-oldest-aarch64:
	@cpu=cortex-a76; echo "== $$cpu, the oldest Torch"; $(A64_TRY) -k "neon and network"

# fp16, which x86 only emulates: every block, option and network against float64, errors, threads.
try-fp16-aarch64: aarch64
	$(A64_UNPACK)
	@set -e; for cpu in $(A64_TRY_CPUS); do echo "== $$cpu, fp16"; \
	    $(A64_RUN) $(A64_PYTEST) tests/test_halves.py tests/test_options.py tests/test_threads.py -m "not thorough" \
	        -k fp16 $(ARGS); done

# Adds those of NEON that tests/digests.json lacks: of new cases, never other bits of old ones.
digests-aarch64: aarch64 wheel-of-this-python-aarch64
	$(A64_UNPACK)
	@cpu=cortex-a76; $(A64_RUN) $(A64_PYTHON) tests/digests.py

# What networks execute, counted by a plugin of QEMU, and LLVM's models of pipelines: bench/aarch64.
A64_BENCH := $(A64)/qemu.done $(A64)/sysroot.done $(A64)/site.done $(A64)/llvm.done $(A64)/rivals.done \
    $(A64)/executed_blocks.so $(STAMPS)/aarch64-bench

$(A64)/llvm.done: scripts/debian.py | $(PY)
	@$(PY) $< $(A64)/llvm llvm-19
	@touch $@

$(A64)/rivals.done: requirements/aarch64-rivals.txt | $(PY)
	@rm -rf $(A64)/rivals
	@$(A64_PIP) --target $(A64)/rivals -r $<
	@touch $@

$(A64)/executed_blocks.so: bench/aarch64/executed_blocks.c
	@mkdir -p $(@D)
	@$(CC) -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared $< -o $@

$(STAMPS)/aarch64-bench: requirements/aarch64-bench.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@

# What did not change since the last time is not counted again.
bench-aarch64: $(A64_BENCH) wheel-of-this-python-aarch64
	$(A64_UNPACK)
	@$(PY) -m pytest -q bench/aarch64/check_executed_blocks.py
	@$(PY) bench/aarch64/measure.py --jobs $(JOBS) $(ARGS)

# NETWORK, FORMAT, BLOCKS: of which, and how many.
hot-aarch64: $(A64_BENCH) wheel-of-this-python-aarch64
	$(A64_UNPACK)
	@$(PY) bench/aarch64/hot.py --network $(or $(NETWORK),s0) --format $(or $(FORMAT),fp32) --blocks $(or $(BLOCKS),10) $(ARGS)
