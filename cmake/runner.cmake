# effv2-run: a program of one piece around the C library, for the machine that CMAKE_SYSTEM_PROCESSOR names.
find_path(EFFV2_CLI11 CLI/CLI.hpp REQUIRED)
find_path(EFFV2_STB stb_image.h PATH_SUFFIXES stb REQUIRED)

file(GLOB EFFV2_RUNNER_SOURCES CONFIGURE_DEPENDS csrc/runner/*.cpp)
add_executable(effv2_run EXCLUDE_FROM_ALL ${EFFV2_RUNNER_SOURCES})
target_include_directories(effv2_run SYSTEM PRIVATE ${EFFV2_CLI11} ${EFFV2_STB})
target_link_libraries(effv2_run PRIVATE effv2_static nlohmann_json::nlohmann_json)
set_target_properties(effv2_run PROPERTIES OUTPUT_NAME effv2-run)
if(NOT APPLE AND NOT EFFV2_SANITIZE)
  target_link_options(effv2_run PRIVATE -static -s)
endif()
