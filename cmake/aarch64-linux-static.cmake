# A toolchain for programs of one piece for 64-bit Arm on any machine: musl is linked into them, so that they run
# on Android's kernel as well.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(target aarch64-linux-musl)
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,-z,stack-size=1048576")  # musl's own for threads is 128 KB
include(${CMAKE_CURRENT_LIST_DIR}/zig.cmake)
