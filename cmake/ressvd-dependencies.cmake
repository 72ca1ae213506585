# SPDX-License-Identifier: Apache-2.0
#
# What we build on: the system's packages first, FetchContent where a network is at hand.
include(FetchContent)

# Imported targets belong to the directory that found them. A project that adds this one as a
# subdirectory links them from outside, so they must be global.
macro(ressvd_make_imported_targets_global)
  get_property(ressvd_imported DIRECTORY PROPERTY IMPORTED_TARGETS)
  if(ressvd_imported)
    set_target_properties(${ressvd_imported} PROPERTIES IMPORTED_GLOBAL TRUE)
  endif()
endmacro()

# Makes Eigen3::Eigen, 3.4 or later. find_package gets no version: Eigen 5 refuses a request for
# 3.4.
macro(ressvd_find_eigen)
  if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 QUIET NO_MODULE)
    if(TARGET Eigen3::Eigen)
      if(Eigen3_VERSION VERSION_LESS 3.4)
        message(FATAL_ERROR "ressvd needs Eigen 3.4 or later, found ${Eigen3_VERSION} in ${Eigen3_DIR}")
      endif()
    else()
      # Eigen's own CMake project brings its tests and documentation along; only headers are needed.
      FetchContent_Declare(eigen
        GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git GIT_TAG 3.4.0 GIT_SHALLOW TRUE
        SOURCE_SUBDIR no-cmake-project)
      FetchContent_MakeAvailable(eigen)
      add_library(Eigen3::Eigen INTERFACE IMPORTED)
      target_include_directories(Eigen3::Eigen SYSTEM INTERFACE ${eigen_SOURCE_DIR})
    endif()
  endif()
endmacro()

# Makes ressvd::<name> as the option RESSVD_<NAME> says: AUTO, ON or OFF.
macro(ressvd_add_optional name)
  string(TOUPPER "RESSVD_${name}" ressvd_option)
  if(NOT "${${ressvd_option}}" STREQUAL "OFF")
    cmake_language(CALL ressvd_add_${name})
    if("${${ressvd_option}}" STREQUAL "ON" AND NOT TARGET ressvd::${name})
      message(FATAL_ERROR "${ressvd_option} is ON, but the libraries for it were not found")
    endif()
  endif()
endmacro()

# Makes Catch2::Catch2, version 2 or 3.
macro(ressvd_find_catch2)
  find_package(Catch2 QUIET)
  if(NOT TARGET Catch2::Catch2)
    FetchContent_Declare(Catch2
      GIT_REPOSITORY https://github.com/catchorg/Catch2.git GIT_TAG v3.7.1 GIT_SHALLOW TRUE)
    FetchContent_MakeAvailable(Catch2)
    list(APPEND CMAKE_MODULE_PATH ${catch2_SOURCE_DIR}/extras)
  endif()
  include(Catch)
endmacro()

# Makes benchmark::benchmark.
macro(ressvd_find_benchmark)
  find_package(benchmark QUIET)
  if(NOT TARGET benchmark::benchmark)
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    FetchContent_Declare(benchmark
      GIT_REPOSITORY https://github.com/google/benchmark.git GIT_TAG v1.8.3 GIT_SHALLOW TRUE)
    FetchContent_MakeAvailable(benchmark)
  endif()
endmacro()
