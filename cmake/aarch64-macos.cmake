# A toolchain for Apple silicon on any Linux machine: shows that the code compiles and links there, and no more.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(target aarch64-macos)
include(${CMAKE_CURRENT_LIST_DIR}/zig.cmake)
# CMake asks for it, to move what it installs; nothing is installed.
find_program(CMAKE_INSTALL_NAME_TOOL true)
set(CMAKE_USER_MAKE_RULES_OVERRIDE_CXX "${CMAKE_CURRENT_LIST_DIR}/aarch64-macos-modules.cmake")
