# Wheels of manylinux_2_28: what the machine's own C++ compiler makes is linked against glibc 2.28, with its C++
# library inside. EFFV2_GLIBC, in the environment, is the folder that scripts/old_glibc.py makes.
set(glibc "$ENV{EFFV2_GLIBC}")
if(NOT EXISTS "${glibc}/libc.so")
  message(FATAL_ERROR "EFFV2_GLIBC must be a folder that scripts/old_glibc.py has made")
endif()
# What is not used of the C++ library may ask for a newer glibc.
string(JOIN " " CMAKE_MODULE_LINKER_FLAGS_INIT
  -static-libstdc++ -Wl,--gc-sections
  "\"-L${glibc}\"" "\"-Wl,--version-script=${glibc}/exports.map\"" "\"${glibc}/single_threaded.o\"")
