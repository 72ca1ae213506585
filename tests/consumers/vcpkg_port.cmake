# SPDX-License-Identifier: Apache-2.0
#
# cmake -D SOURCE_DIR=... -D WORK_DIR=... -D CXX=... -P vcpkg_port.cmake
#
# Runs the port with stand-ins for the functions of vcpkg that it calls, and compares what it
# installs with what it should. Only vcpkg itself shows what it makes of the port.
set(PORT ressvd)
set(port_dir ${SOURCE_DIR}/packaging/vcpkg/ports/${PORT})
set(CURRENT_PORT_DIR ${port_dir})
set(CURRENT_PACKAGES_DIR ${WORK_DIR}/packages)
file(REMOVE_RECURSE ${CURRENT_PACKAGES_DIR})

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${text}")
  endif()
endfunction()

# Without any feature: each option of the port is OFF.
function(vcpkg_check_features)
  cmake_parse_arguments(arg "" "OUT_FEATURE_OPTIONS" "FEATURES" ${ARGN})
  set(options "")
  while(arg_FEATURES)
    list(POP_FRONT arg_FEATURES feature option)
    list(APPEND options -D${option}=OFF)
    string(JSON description GET "${manifest}" features ${feature} description)
  endwhile()
  set(${arg_OUT_FEATURE_OPTIONS} ${options} PARENT_SCOPE)
endfunction()

function(vcpkg_cmake_configure)
  cmake_parse_arguments(arg "" "SOURCE_PATH" "OPTIONS" ${ARGN})
  run(${CMAKE_COMMAND} -S ${arg_SOURCE_PATH} -B ${WORK_DIR}/build -D CMAKE_CXX_COMPILER=${CXX}
      -D CMAKE_INSTALL_PREFIX=${CURRENT_PACKAGES_DIR} -D CMAKE_BUILD_TYPE=Release
      -D FETCHCONTENT_FULLY_DISCONNECTED=ON ${arg_OPTIONS})
endfunction()

function(vcpkg_cmake_install)
  run(${CMAKE_COMMAND} --build ${WORK_DIR}/build --target install)
endfunction()

# Only the move; vcpkg also corrects the prefix in the files it moves.
function(vcpkg_cmake_config_fixup)
  cmake_parse_arguments(arg "" "CONFIG_PATH" "" ${ARGN})
  file(MAKE_DIRECTORY ${CURRENT_PACKAGES_DIR}/share)
  file(RENAME ${CURRENT_PACKAGES_DIR}/${arg_CONFIG_PATH} ${CURRENT_PACKAGES_DIR}/share/${PORT})
endfunction()

function(vcpkg_fixup_pkgconfig)
endfunction()

function(vcpkg_install_copyright)
  cmake_parse_arguments(arg "" "" "FILE_LIST" ${ARGN})
  file(READ ${arg_FILE_LIST} text)
  file(WRITE ${CURRENT_PACKAGES_DIR}/share/${PORT}/copyright "${text}")
endfunction()

file(READ ${port_dir}/vcpkg.json manifest)
string(JSON name GET "${manifest}" name)
if(NOT name STREQUAL PORT)
  message(FATAL_ERROR "vcpkg.json is that of '${name}'")
endif()
include(${port_dir}/portfile.cmake)

file(GLOB_RECURSE installed RELATIVE ${CURRENT_PACKAGES_DIR} LIST_DIRECTORIES true
     ${CURRENT_PACKAGES_DIR}/*)
list(FILTER installed EXCLUDE REGEX "^include/ressvd/")
set(expected
  include include/ressvd share share/pkgconfig share/pkgconfig/ressvd.pc share/ressvd
  share/ressvd/copyright share/ressvd/ressvd-components.cmake
  share/ressvd/ressvd-config-version.cmake share/ressvd/ressvd-config.cmake
  share/ressvd/ressvd-targets.cmake share/ressvd/usage)
list(SORT installed)
list(SORT expected)
if(NOT installed STREQUAL expected)
  message(FATAL_ERROR "the port installs\n  ${installed}\ninstead of\n  ${expected}")
endif()
file(GLOB_RECURSE ours RELATIVE ${SOURCE_DIR} ${SOURCE_DIR}/include/*)
file(GLOB_RECURSE theirs RELATIVE ${CURRENT_PACKAGES_DIR} ${CURRENT_PACKAGES_DIR}/include/*)
if(NOT ours STREQUAL theirs)
  message(FATAL_ERROR "the port does not install the headers of the repository")
endif()
