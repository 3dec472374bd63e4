# Finds LibTorch for C++ without its own CMake package, which cannot be loaded where a CUDA build of LibTorch
# meets a machine without the CUDA toolkit. Works with the Python wheel, the libtorch archive and conda.
#
# Looks at Torch_DIR and CMAKE_PREFIX_PATH, in the forms that find_package(Torch) accepts.
# Defines LibTorch_FOUND, LibTorch_VERSION, LibTorch_LIBRARY_DIR and the target zerosched::torch, which links
# libtorch_cpu and libc10 only: libtorch.so would load every CUDA library into programs that use none. It asks for the
# C++ standard that LibTorch's headers need, which newer ones raise to 20.
#
# Of a CUDA build also LibTorch_CUDA_VERSION_MAJOR and the target zerosched::torch_cuda: what code that calls the
# CUDA runtime links beside it, libc10_cuda and the very libcudart that libc10_cuda loads. No toolkit is needed
# for it; one that is found by find_package(CUDAToolkit) beforehand or afterwards supplies the headers.
set(_roots ${LibTorch_ROOT})
if(Torch_DIR)
  list(APPEND _roots "${Torch_DIR}/../../..")
endif()
set(_prefixes ${CMAKE_PREFIX_PATH} $ENV{CMAKE_PREFIX_PATH})
string(REPLACE ":" ";" _prefixes "${_prefixes}")
foreach(_prefix IN LISTS _prefixes)
  # torch.utils.cmake_prefix_path is <torch>/share/cmake.
  list(APPEND _roots "${_prefix}" "${_prefix}/../..")
endforeach()

find_path(LibTorch_INCLUDE_DIR torch/csrc/api/include/torch/all.h HINTS ${_roots} PATH_SUFFIXES include)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS ${_roots} PATH_SUFFIXES lib)
find_library(LibTorch_C10_LIBRARY c10 HINTS ${_roots} PATH_SUFFIXES lib)
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY)
unset(_roots)
unset(_prefixes)

if(LibTorch_INCLUDE_DIR)
  foreach(_header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(NOT EXISTS "${LibTorch_INCLUDE_DIR}/${_header}")
      continue()
    endif()
    file(STRINGS "${LibTorch_INCLUDE_DIR}/${_header}" _lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    if(_lines)
      string(REGEX REPLACE "[^0-9;]" "" _numbers "${_lines}")
      string(REPLACE ";" "." LibTorch_VERSION "${_numbers}")
      break()
    endif()
  endforeach()
endif()

set(_reason
    "LibTorch was not found. Run launch/setup, which installs it, or point CMAKE_PREFIX_PATH or Torch_DIR at one: of a wheel that is torch.utils.cmake_prefix_path.")
set(LibTorch_CXX11_ABI TRUE)
if(EXISTS "${LibTorch_INCLUDE_DIR}/../share/cmake/Torch/TorchConfig.cmake")
  file(STRINGS "${LibTorch_INCLUDE_DIR}/../share/cmake/Torch/TorchConfig.cmake" _old_abi REGEX "_GLIBCXX_USE_CXX11_ABI=0")
  if(_old_abi)
    set(LibTorch_CXX11_ABI FALSE)
    set(_reason
        "LibTorch ${LibTorch_VERSION} in ${LibTorch_INCLUDE_DIR} was built with GCC's C++ ABI of before C++11 (_GLIBCXX_USE_CXX11_ABI=0), with which others do not link. Take a wheel of 2.7 or newer, or an archive that is called cxx11-abi.")
  endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR LibTorch_CXX11_ABI
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "${_reason}")
unset(_old_abi)
unset(_reason)

if(LibTorch_FOUND)
  get_filename_component(LibTorch_LIBRARY_DIR "${LibTorch_CPU_LIBRARY}" DIRECTORY)
  if(NOT TARGET zerosched::torch)
    add_library(zerosched::torch INTERFACE IMPORTED)
    # They refuse older standards: "#error C++17 or later compatible compiler is required to use PyTorch."
    file(STRINGS "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include/torch/all.h" _standard REGEX "#error C[+][+][0-9]+ or later")
    string(REGEX MATCH "C[+][+]([0-9]+)" _standard "${_standard};C++17")
    set_target_properties(
      zerosched::torch
      PROPERTIES
        INTERFACE_COMPILE_FEATURES cxx_std_${CMAKE_MATCH_1}
        INTERFACE_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
        INTERFACE_LINK_LIBRARIES "${LibTorch_CPU_LIBRARY};${LibTorch_C10_LIBRARY}"
        # A wheel's libraries find each other and CUDA's at run time, not at link time.
        INTERFACE_LINK_OPTIONS "LINKER:--allow-shlib-undefined")
    unset(_standard)
  endif()

  find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda PATHS "${LibTorch_LIBRARY_DIR}" NO_DEFAULT_PATH)
  mark_as_advanced(LibTorch_C10_CUDA_LIBRARY)
  if(LibTorch_C10_CUDA_LIBRARY AND NOT TARGET zerosched::torch_cuda)
    # The name it asks the loader for: libcudart.so.13, or with a hash in the archives.
    file(STRINGS "${LibTorch_C10_CUDA_LIBRARY}" _cudart REGEX "^libcudart[-.0-9a-f]*[.]so[.][0-9]+" LIMIT_COUNT 1)
    string(REGEX MATCH "^libcudart[-.0-9a-f]*[.]so[.]([0-9]+)[.0-9]*" _cudart "${_cudart}")
    set(LibTorch_CUDA_VERSION_MAJOR "${CMAKE_MATCH_1}")
    # A wheel's lie beside torch in nvidia/*/lib, an archive's with LibTorch itself, conda's in the prefix.
    file(GLOB _cudart_dirs "${LibTorch_LIBRARY_DIR}/../../nvidia/*/lib")
    find_library(
      LibTorch_CUDART_LIBRARY
      NAMES "${_cudart}"
      HINTS "${LibTorch_LIBRARY_DIR}" ${_cudart_dirs}
      PATHS "${LibTorch_LIBRARY_DIR}/../../../.." /usr/local/cuda ENV CUDA_HOME ENV CUDA_PATH
      PATH_SUFFIXES lib64)
    mark_as_advanced(LibTorch_CUDART_LIBRARY)
    if(LibTorch_CUDART_LIBRARY)
      add_library(zerosched::torch_cuda INTERFACE IMPORTED)
      set_target_properties(
        zerosched::torch_cuda
        PROPERTIES INTERFACE_LINK_LIBRARIES "${LibTorch_C10_CUDA_LIBRARY};${LibTorch_CUDART_LIBRARY};zerosched::torch")
    endif()
    unset(_cudart)
    unset(_cudart_dirs)
  endif()
endif()
