# SPDX-License-Identifier: Apache-2.0
#
# The library's targets: ressvd::ressvd; on request ressvd::compiled; where their libraries are
# found ressvd::cuda and ressvd::lapack.
include(ressvd-dependencies)
include(ressvd-components)

ressvd_find_eigen()
# The CPU backends keep threads of their own.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

add_library(ressvd INTERFACE)
add_library(ressvd::ressvd ALIAS ressvd)
target_compile_features(ressvd INTERFACE cxx_std_20)
target_include_directories(ressvd INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_link_libraries(ressvd INTERFACE
  $<BUILD_INTERFACE:Eigen3::Eigen> $<INSTALL_INTERFACE:Eigen3::Eigen> Threads::Threads)

# The backend, the kernels on it and the C interface, each for itself and each scalar for itself, so
# that they compile side by side. In another project it is built when something links it.
set(sources "")
foreach(source eigen_float eigen_double kernels_float kernels_double c_interface)
  list(APPEND sources ${PROJECT_SOURCE_DIR}/src/${source}.cpp)
endforeach()
add_library(ressvd_compiled STATIC ${sources})
add_library(ressvd::compiled ALIAS ressvd_compiled)
set_target_properties(ressvd_compiled PROPERTIES
  EXPORT_NAME compiled OUTPUT_NAME ressvd POSITION_INDEPENDENT_CODE ON UNITY_BUILD OFF)
if(NOT RESSVD_BUILD_COMPILED)
  set_target_properties(ressvd_compiled PROPERTIES EXCLUDE_FROM_ALL ON)
endif()
target_link_libraries(ressvd_compiled
  PUBLIC ressvd PRIVATE $<BUILD_INTERFACE:ressvd_development>)
# UndefinedBehaviorSanitizer doubles the compile time of Eigen; AddressSanitizer stays.
if(RESSVD_SANITIZE MATCHES "undefined")
  set_source_files_properties(
    ${PROJECT_SOURCE_DIR}/src/eigen_float.cpp ${PROJECT_SOURCE_DIR}/src/eigen_double.cpp
    PROPERTIES COMPILE_OPTIONS -fno-sanitize=undefined)
endif()

ressvd_add_optional(cuda)
ressvd_add_optional(lapack)
ressvd_make_imported_targets_global()
