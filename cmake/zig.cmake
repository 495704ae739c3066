# Zig's C++ compiler, for the system that ${target} names, as a part of a toolchain file. EFFV2_ZIG, in the
# environment, is the path of zig.
set(zig "$ENV{EFFV2_ZIG}")
if(NOT zig)
  message(FATAL_ERROR "EFFV2_ZIG must be the path of zig, of the PyPI package ziglang")
endif()
set(CMAKE_CXX_COMPILER "${zig}" c++ -target ${target})

# CMake takes these by their path alone.
foreach(tool ar ranlib)
  set(wrapper "${CMAKE_BINARY_DIR}/zig-${tool}")
  file(WRITE "${wrapper}" "#!/bin/sh\nexec '${zig}' ${tool} \"$@\"\n")
  file(CHMOD "${wrapper}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  string(TOUPPER ${tool} name)
  set(CMAKE_${name} "${wrapper}" CACHE FILEPATH "" FORCE)
endforeach()
