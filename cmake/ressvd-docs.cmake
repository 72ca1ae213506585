# SPDX-License-Identifier: Apache-2.0
#
# ressvd_docs: the documentation as a site in <build>/site, by Doxygen. Warnings are errors.
find_package(Doxygen 1.9 QUIET)
if(DOXYGEN_FOUND)
  configure_file(${PROJECT_SOURCE_DIR}/docs/Doxyfile.in ${PROJECT_BINARY_DIR}/Doxyfile @ONLY)
  add_custom_target(ressvd_docs
    COMMAND ${DOXYGEN_EXECUTABLE} ${PROJECT_BINARY_DIR}/Doxyfile
    COMMENT "Documentation: ${PROJECT_BINARY_DIR}/site/html/index.html" VERBATIM)
endif()
