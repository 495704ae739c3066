# libeffv2: the engine behind csrc/effv2.h, shared and static, with what CMake and pkg-config need to find it.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
find_package(nlohmann_json 3.9 REQUIRED)

add_library(effv2_storage OBJECT
  csrc/storage/container.cpp
  csrc/storage/json.cpp
  csrc/storage/labels.cpp
  csrc/storage/load.cpp
  csrc/storage/mapped_file.cpp
  csrc/storage/structure.cpp)
add_library(effv2_c_api OBJECT csrc/c_api/effv2.cpp)
target_compile_definitions(effv2_c_api PRIVATE EFFV2_VERSION="${EFFV2_VERSION}")
foreach(library effv2_storage effv2_c_api)
  target_include_directories(${library} PRIVATE csrc)
  target_link_libraries(${library} PRIVATE nlohmann_json::nlohmann_json)
endforeach()

foreach(kind STATIC SHARED)
  string(TOLOWER effv2_${kind} library)
  effv2_add_engine(${library} ${kind} ${EFFV2_TARGETS})
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:effv2_storage> $<TARGET_OBJECTS:effv2_c_api>)
  target_include_directories(${library} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  # Not where Python's module goes.
  set_target_properties(${library} PROPERTIES OUTPUT_NAME effv2 LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
endforeach()
set_target_properties(effv2_shared PROPERTIES
  EXPORT_NAME effv2 VERSION ${PROJECT_VERSION} SOVERSION 1 LINK_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/c_api/effv2.map)
if(NOT APPLE)
  target_link_options(effv2_shared PRIVATE -Wl,--version-script=${PROJECT_SOURCE_DIR}/csrc/c_api/effv2.map)
  if(NOT EFFV2_SANITIZE)  # whose symbols the program has
    target_link_options(effv2_shared PRIVATE -Wl,--no-undefined)
  endif()
endif()

set(EFFV2_PACKAGE_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/effv2)
configure_package_config_file(cmake/effv2Config.cmake.in effv2Config.cmake INSTALL_DESTINATION ${EFFV2_PACKAGE_FOLDER})
write_basic_package_version_file(effv2ConfigVersion.cmake COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH EFFV2_PREFIX_FROM_PKGCONFIG "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/.")
string(REGEX REPLACE "/$" "" EFFV2_PREFIX_FROM_PKGCONFIG "${EFFV2_PREFIX_FROM_PKGCONFIG}")
configure_file(cmake/effv2.pc.in effv2.pc @ONLY)

install(TARGETS effv2_shared effv2_static EXPORT effv2Targets COMPONENT c_api)
install(FILES csrc/effv2.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT c_api)
install(EXPORT effv2Targets NAMESPACE effv2:: DESTINATION ${EFFV2_PACKAGE_FOLDER} COMPONENT c_api)
install(FILES ${PROJECT_BINARY_DIR}/effv2Config.cmake ${PROJECT_BINARY_DIR}/effv2ConfigVersion.cmake
  DESTINATION ${EFFV2_PACKAGE_FOLDER} COMPONENT c_api)
install(FILES ${PROJECT_BINARY_DIR}/effv2.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT c_api)
