# SPDX-License-Identifier: Apache-2.0
#
# ressvd_development: the flags of our own binaries (tests, examples, benchmarks, the compiled
# library). It is linked PRIVATE and never exported, so consumers see none of it. Every source of a
# binary gets the same architecture flags: Eigen's alignment, and so its ABI, depends on them.
add_library(ressvd_development INTERFACE)

if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
  endif()
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
  set(CMAKE_CXX_EXTENSIONS OFF)
  find_program(RESSVD_CCACHE ccache)
  mark_as_advanced(RESSVD_CCACHE)
  if(RESSVD_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${RESSVD_CCACHE})
  endif()
endif()

# g++ before 13 takes registers for uninitialised in its own AVX-512 intrinsics (GCC bug 105593)
# and sees overlapping and endless copies in std::string's own concatenation (GCC bug 105651).
target_compile_options(ressvd_development INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow
  "$<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-uninitialized;-Wno-maybe-uninitialized;-Wno-restrict;-Wno-stringop-overflow>"
  $<$<BOOL:${RESSVD_WARNINGS_AS_ERRORS}>:-Werror>
  $<$<BOOL:${RESSVD_NATIVE}>:-march=native>)

if(RESSVD_SANITIZE)
  set(sanitize -fsanitize=${RESSVD_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(ressvd_development INTERFACE ${sanitize})
  target_link_options(ressvd_development INTERFACE ${sanitize})
endif()
