# SPDX-License-Identifier: Apache-2.0
#
# The component development installs the headers, the CMake package (find_package(ressvd COMPONENTS
# cuda lapack compiled)) and the pkg-config file. The component tools installs the program, if the
# examples are built.
include(CMakePackageConfigHelpers)

set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME development)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/ressvd)
set(install_targets ressvd)
set(arch_independent ARCH_INDEPENDENT)
if(RESSVD_BUILD_COMPILED)
  if(RESSVD_NATIVE OR RESSVD_SANITIZE)
    message(STATUS "ressvd::compiled is built for this machine's own use: it is not installed")
  else()
    list(APPEND install_targets ressvd_compiled)
    set(arch_independent "")
  endif()
endif()

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ressvd DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")
install(TARGETS ${install_targets} EXPORT ressvd-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT ressvd-targets NAMESPACE ressvd:: DESTINATION ${package_dir})

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/ressvd-config.cmake.in
  ${PROJECT_BINARY_DIR}/ressvd-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ressvd-config-version.cmake
  COMPATIBILITY SameMinorVersion ${arch_independent})
install(FILES
  ${PROJECT_BINARY_DIR}/ressvd-config.cmake
  ${PROJECT_BINARY_DIR}/ressvd-config-version.cmake
  ${CMAKE_CURRENT_LIST_DIR}/ressvd-components.cmake
  DESTINATION ${package_dir})

configure_file(${CMAKE_CURRENT_LIST_DIR}/ressvd.pc.in ${PROJECT_BINARY_DIR}/ressvd.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/ressvd.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
