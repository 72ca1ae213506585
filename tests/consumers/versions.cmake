# SPDX-License-Identifier: Apache-2.0
#
# cmake -D SOURCE_DIR=... -P versions.cmake: what repeats the version agrees with the header.
file(READ ${SOURCE_DIR}/include/ressvd/version.hpp header)
foreach(part MAJOR MINOR PATCH)
  if(NOT header MATCHES "#define RESSVD_VERSION_${part} ([0-9]+)\n")
    message(FATAL_ERROR "version.hpp states no RESSVD_VERSION_${part}")
  endif()
  list(APPEND parts ${CMAKE_MATCH_1})
endforeach()
list(JOIN parts "." version)

function(agrees file stated)
  if(NOT stated STREQUAL version)
    message(FATAL_ERROR "${file} says '${stated}', version.hpp ${version}")
  endif()
endfunction()

# first_match(FILE REGEX): the group of the regular expression.
function(first_match file regex)
  file(READ ${SOURCE_DIR}/${file} text)
  set(stated "nothing")
  if(text MATCHES "${regex}")
    set(stated ${CMAKE_MATCH_1})
  endif()
  agrees(${file} ${stated})
endfunction()

first_match(include/ressvd/version.hpp "#define RESSVD_VERSION_STRING \"([^\"]*)\"\n")
first_match(CITATION.cff "\nversion: ([^\n]*)\n")
first_match(CHANGELOG.md "\n## ([^ \n]*)")

file(READ ${SOURCE_DIR}/packaging/vcpkg/ports/ressvd/vcpkg.json manifest)
string(JSON stated GET "${manifest}" version-semver)
agrees(vcpkg.json ${stated})
message(STATUS "all say ${version}")
