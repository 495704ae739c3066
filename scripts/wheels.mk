# Wheels of manylinux_2_28 in dist/, for x86-64 and 64-bit Arm and every CPython that can be had, and what they compute
# in environments of their own. All of it stays in build/wheels. PYTHONS="python3.12 ..." takes these alone.
PYTHONS ?=
WHEELS = CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(PY) scripts/wheels.py $(if $(PYTHONS),--pythons $(PYTHONS))
ZIG = $(PURELIB)/ziglang/zig

.PHONY: wheels wheel-aarch64 macos

# Those for x86-64 are tried here; one of Arm's by try-wheel-aarch64, under emulation. CUDA=1: also with builds of
# Torch that bring CUDA's libraries, gigabytes of them.
wheels: $(STAMPS)/wheels
	@$(WHEELS)
	@$(PY) scripts/try_wheels.py $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(CUDA),--cuda-builds)
	@if ls dist/*-cp311-*_aarch64.whl >/dev/null 2>&1; then $(MAKE) try-wheel-aarch64; \
	    else echo "left out: wheels for Arm, of which the one for CPython 3.11 is tried"; fi

wheel-aarch64: $(STAMPS)/wheels
	@$(WHEELS) --architectures aarch64

# Compiles and links for Apple silicon all that the wheel and the native tests need, with this Python's headers;
# nothing here can run it.
macos: $(STAMPS)/wheels
	@EFFV2_ZIG="$(ZIG)" cmake -S . -B build/macos -DCMAKE_TOOLCHAIN_FILE="$(CURDIR)/cmake/aarch64-macos.cmake" \
	    $(CMAKE_PYTHON) -DCMAKE_BUILD_TYPE=Release -DEFFV2_NATIVE_TESTS=ON -DPYTHON_MODULE_EXTENSION=.so \
	    -DPython_INCLUDE_DIR="$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))')"
	@EFFV2_ZIG="$(ZIG)" cmake --build build/macos --parallel $(JOBS)

$(STAMPS)/wheels: requirements/wheels.txt $(STAMPS)/test
	@$(PIP) -r $<
	@touch $@
