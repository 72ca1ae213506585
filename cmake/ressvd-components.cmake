# SPDX-License-Identifier: Apache-2.0
#
# The optional backends are nothing but a link line over the headers. The build tree and the
# installed package make them from this one text, so they mean the same in both.

# Makes the target ressvd::cuda when the CUDA toolkit (12 or later) is found.
function(ressvd_add_cuda)
  if(TARGET ressvd::cuda)
    return()
  endif()
  find_package(CUDAToolkit 12 QUIET)
  if(NOT TARGET CUDA::nvrtc OR NOT TARGET CUDA::cusolver)
    return()
  endif()
  # NVRTC is linked by its file: the target CUDA::nvrtc brings the driver's library along, and
  # programs linked to that do not start on a machine without a driver.
  get_target_property(nvrtc CUDA::nvrtc IMPORTED_LOCATION)
  add_library(ressvd::cuda INTERFACE IMPORTED)
  target_link_libraries(ressvd::cuda INTERFACE
    ressvd::ressvd CUDA::cudart CUDA::cublas CUDA::cusolver ${nvrtc})
endfunction()

# Makes the target ressvd::lapack when LAPACKE and a BLAS with the C interface are found: OpenBLAS
# where there is one, otherwise what FindBLAS names (BLA_VENDOR chooses).
function(ressvd_add_lapack)
  if(TARGET ressvd::lapack)
    return()
  endif()
  find_path(RESSVD_LAPACKE_INCLUDE_DIR lapacke.h PATH_SUFFIXES lapacke openblas)
  find_path(RESSVD_CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas openblas-pthread cblas)
  find_library(RESSVD_LAPACKE_LIBRARY lapacke)
  find_library(RESSVD_OPENBLAS_LIBRARY openblas PATH_SUFFIXES openblas-pthread)
  mark_as_advanced(RESSVD_LAPACKE_INCLUDE_DIR RESSVD_CBLAS_INCLUDE_DIR RESSVD_LAPACKE_LIBRARY
                   RESSVD_OPENBLAS_LIBRARY)
  if(NOT RESSVD_LAPACKE_INCLUDE_DIR OR NOT RESSVD_CBLAS_INCLUDE_DIR)
    return()
  endif()
  if(RESSVD_OPENBLAS_LIBRARY)
    set(blas ${RESSVD_OPENBLAS_LIBRARY})
  else()
    find_package(LAPACK QUIET)
    if(NOT LAPACK_FOUND)
      return()
    endif()
    set(blas ${LAPACK_LIBRARIES})
  endif()
  add_library(ressvd::lapack INTERFACE IMPORTED)
  target_include_directories(ressvd::lapack SYSTEM INTERFACE
    ${RESSVD_LAPACKE_INCLUDE_DIR} ${RESSVD_CBLAS_INCLUDE_DIR})
  # Debian keeps LAPACKE in a library of its own; others build it into OpenBLAS.
  target_link_libraries(ressvd::lapack INTERFACE ressvd::ressvd)
  if(RESSVD_LAPACKE_LIBRARY)
    target_link_libraries(ressvd::lapack INTERFACE ${RESSVD_LAPACKE_LIBRARY})
  endif()
  target_link_libraries(ressvd::lapack INTERFACE ${blas})
endfunction()
