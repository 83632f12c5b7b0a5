# The CUDA side. SNAPMLA_CUDA = OFF: CPU only, nvcc is not looked for. ON: nvcc must be there. AUTO: used where found.
#
# With nvcc, CUDA becomes a language of this project (SNAPMLA_HAVE_CUDA) for Hopper, sm_90a, and the number codecs that host
# and device share are compiled and tested by nvcc (tests/cuda). The CUDA kernels are not part of this version: the backend
# object is src/cuda/none.cc either way, and its supported() says so.
set(SNAPMLA_HAVE_CUDA OFF)
set_property(CACHE SNAPMLA_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT SNAPMLA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SNAPMLA_CUDA must be AUTO, ON or OFF; got ${SNAPMLA_CUDA}")
endif()

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
message(STATUS "CUDA backend: not in version ${PROJECT_VERSION}; host/device codecs are built with nvcc "
               "${CMAKE_CUDA_COMPILER_VERSION} for sm_${CMAKE_CUDA_ARCHITECTURES}")
