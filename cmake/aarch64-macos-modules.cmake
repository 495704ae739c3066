# After CMake's own rules for macOS: Zig makes no bundles, and a library serves to show that everything links.
set(CMAKE_SHARED_MODULE_CREATE_CXX_FLAGS -dynamiclib)
