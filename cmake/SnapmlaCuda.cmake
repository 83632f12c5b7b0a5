# The CUDA side. SNAPMLA_CUDA = OFF: CPU only, nvcc is not looked for. ON: nvcc must be there. AUTO: used where found.
#
# With nvcc, CUDA becomes a language of this project (SNAPMLA_HAVE_CUDA) and the CUDA backend is built for Hopper, sm_90a. Without,
# src/cuda/none.cc stands in for it and says why. The CUDA runtime is linked statically and the driver is found at run time, so
# one build runs on machines with and without a GPU.
set(SNAPMLA_HAVE_CUDA OFF)
set_property(CACHE SNAPMLA_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT SNAPMLA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SNAPMLA_CUDA must be AUTO, ON or OFF; got ${SNAPMLA_CUDA}")
endif()

# Gives a library the CUDA backend, or what stands in for it.
function(snapmla_add_cuda_backend target)
  if(NOT SNAPMLA_HAVE_CUDA)
    target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src/cuda/none.cc)
    return()
  endif()
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cc ${PROJECT_SOURCE_DIR}/src/cuda/*.cu)
  list(REMOVE_ITEM sources ${PROJECT_SOURCE_DIR}/src/cuda/none.cc)
  target_sources(${target} PRIVATE ${sources})
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()

if(SNAPMLA_CUDA STREQUAL "OFF")
  message(STATUS "CUDA backend: not built (SNAPMLA_CUDA=OFF)")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a)
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(SNAPMLA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SNAPMLA_CUDA=ON needs nvcc (CUDA 12.3 or later), and none was found. Install the CUDA toolkit, "
                        "or set CUDACXX to its nvcc; without a GPU, use the cpu preset.")
  endif()
  message(STATUS "CUDA backend: not built (no nvcc)")
  return()
endif()

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# CMake before 3.26 (Debian 12 has 3.25) does not know that nvcc takes C++20, from 12.0 on.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(SNAPMLA_HAVE_CUDA ON)
message(STATUS "CUDA backend: built with nvcc ${CMAKE_CUDA_COMPILER_VERSION} for sm_${CMAKE_CUDA_ARCHITECTURES}")
