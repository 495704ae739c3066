# A toolchain for 64-bit Arm on any Linux machine, against the glibc that wheels of manylinux_2_28 may ask for.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(target aarch64-linux-gnu.2.28)
include(${CMAKE_CURRENT_LIST_DIR}/zig.cmake)
