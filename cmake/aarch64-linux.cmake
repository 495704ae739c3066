# A toolchain for 64-bit Arm on any Linux machine: Zig's C++ compiler, against the glibc that wheels of
# manylinux_2_28 may ask for. EFFV2_ZIG, in the environment, is its path.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(zig "$ENV{EFFV2_ZIG}")
if(NOT zig)
  message(FATAL_ERROR "EFFV2_ZIG must be the path of zig, of the PyPI package ziglang")
endif()
set(CMAKE_CXX_COMPILER "${zig}" c++ -target aarch64-linux-gnu.2.28)

# CMake takes these by their path alone.
foreach(tool ar ranlib)
  set(wrapper "${CMAKE_BINARY_DIR}/zig-${tool}")
  file(WRITE "${wrapper}" "#!/bin/sh\nexec '${zig}' ${tool} \"$@\"\n")
  file(CHMOD "${wrapper}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  string(TOUPPER ${tool} name)
  set(CMAKE_${name} "${wrapper}" CACHE FILEPATH "" FORCE)
endforeach()
