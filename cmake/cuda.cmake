# The kernels for NVIDIA GPUs, compiled by nvcc, and the Python module around them.
set(EFFV2_CUDA_ARCHITECTURES 80 86 89 90 100 120 CACHE STRING
  "Compute capabilities to compile for, in ascending order; newer GPUs compile the last one's PTX for themselves")

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "EFFV2_CUDA needs NVIDIA's compiler, and there is no nvcc that works: put its folder on PATH or "
    "its path into CUDACXX, or build without EFFV2_CUDA, for the CPU and Triton")
endif()
set(CMAKE_CUDA_ARCHITECTURES OFF)  # each target has its own
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "EFFV2_CUDA needs CUDA 12.8 or newer, and ${CMAKE_CUDA_COMPILER} is of "
    "${CMAKE_CUDA_COMPILER_VERSION}")
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

set(older ${EFFV2_CUDA_ARCHITECTURES})
list(POP_BACK older newest)
list(TRANSFORM older APPEND -real)
set(architectures ${older} ${newest})  # machine code, and of the newest PTX as well

# The names in one of step.h's lists.
function(effv2_names_in_steps list names)
  file(READ ${PROJECT_SOURCE_DIR}/csrc/cuda/step.h text)
  string(REGEX MATCH "${list}\\[\\] = {([^}]*)}" ignored "${text}")
  string(REGEX MATCHALL "[a-z0-9_]+" found "${CMAKE_MATCH_1}")
  if(NOT found)
    message(FATAL_ERROR "csrc/cuda/step.h has no list ${list}")
  endif()
  set(${names} ${found} PARENT_SCOPE)
endfunction()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/cuda/step.h)
effv2_names_in_steps(kKindNames kinds)
effv2_names_in_steps(kFormatNames formats)

add_library(effv2_cuda_options INTERFACE)
target_include_directories(effv2_cuda_options INTERFACE
  ${PROJECT_SOURCE_DIR}/csrc ${PROJECT_BINARY_DIR}/cuda ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_options(effv2_cuda_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-ffp-contract=off,-fno-math-errno>")

# A compilation of kernels, for each architecture.
function(effv2_add_kernels name source)
  add_library(${name} OBJECT ${source})
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  target_link_libraries(${name} PRIVATE effv2_cuda_options)
  target_compile_definitions(${name} PRIVATE ${ARGN})
  # Several architectures at a time, in as many threads as there are processors.
  target_compile_options(${name} PRIVATE --threads=0 --compress-mode=size)
  target_sources(effv2_cuda PRIVATE $<TARGET_OBJECTS:${name}>)
endfunction()

if(NOT EFFV2_ENGINE)
  # Who starts kernels: the host's alone, so one architecture is enough, but told by the kernels' types.
  set_source_files_properties(csrc/cuda/extent.cpp csrc/cuda/schedule.cpp PROPERTIES LANGUAGE CUDA)
  add_library(effv2_cuda STATIC
    csrc/cuda/extent.cpp csrc/cuda/launch.cu csrc/cuda/runtime.cpp csrc/cuda/schedule.cpp)
  set_target_properties(effv2_cuda PROPERTIES CUDA_ARCHITECTURES ${newest}-real)
  target_link_libraries(effv2_cuda PRIVATE effv2_cuda_options)
  list(JOIN EFFV2_CUDA_ARCHITECTURES " " names)
  target_compile_definitions(effv2_cuda PRIVATE EFFV2_CUDA_ARCHITECTURES="${names}")
  set(table "")
  foreach(format IN LISTS formats)
    effv2_add_kernels(effv2_cuda_network_${format} csrc/cuda/network.cu EFFV2_FORMAT=${format})
    foreach(kind IN LISTS kinds)
      string(APPEND table "X(${kind}, ${format})\n")
      effv2_add_kernels(effv2_cuda_${kind}_${format} csrc/cuda/kernels.cu EFFV2_KIND=${kind} EFFV2_FORMAT=${format})
    endforeach()
  endforeach()
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/cuda/cuda_kernels.inc CONTENT "${table}")
endif()

if(EFFV2_PYTHON)
  set_source_files_properties(python/cuda_steps.cpp python/cuda_module.cpp PROPERTIES LANGUAGE CUDA)
  pybind11_add_module(_cuda python/cuda_module.cpp python/cuda_steps.cpp)
  set_target_properties(_cuda PROPERTIES CUDA_ARCHITECTURES ${newest}-real)
  set(library effv2_cuda)
  if(EFFV2_ENGINE)
    set(library ${EFFV2_ENGINE}/libeffv2_cuda.a)
  endif()
  target_link_libraries(_cuda PRIVATE effv2_cuda_options ${library})
  install(TARGETS _cuda DESTINATION effv2_kernels)
endif()
