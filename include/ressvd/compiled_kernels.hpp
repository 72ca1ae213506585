// SPDX-License-Identifier: Apache-2.0
//
// What ressvd::compiled holds of a backend beside its own members: the kernels and the layer-level
// API, which depend on nothing but the backend. RESSVD_COMPILED_KERNELS(extern, B) declares the
// instances, RESSVD_COMPILED_KERNELS(, B) makes them; both stand in namespace ressvd::v0, and the
// header that uses the macro undefines it.
#pragma once

#include "ressvd/algorithms.hpp"

#define RESSVD_COMPILED_KERNELS(STORAGE, B)                                                       \
  STORAGE template svd_basis<B> truncated_svd(B&, const weight<B>&, const metric<B::space>&,      \
                                              const metric<B::space>&, index_t,                   \
                                              const svd_options&);                                \
  STORAGE template low_rank<B::scalar> slice(B&, const weight<B>&, const svd_basis<B>&, index_t); \
  STORAGE template compensated_basis<B> residual_compensation(                                    \
      B&, const weight<B>&, const svd_basis<B>&, const residual_options&,                         \
      const metric<B::space>&);                                                                   \
  STORAGE template class warm_started_svd<B>;                                                     \
  STORAGE template class residual_stages<B>;                                                      \
  STORAGE template pivoted_result<B> pivot(B&, const low_rank<B::scalar>&,                        \
                                           const pivoting_options&);                              \
  STORAGE template loss weighted_loss(B&, const weight<B>&, const_block_of<B>, const_block_of<B>, \
                                      const metric<B::space>&);                                   \
  STORAGE template std::vector<double> truncation_losses(B&, const weight<B>&, const_block_of<B>, \
                                                         const_block_of<B>, nesting,              \
                                                         const metric<B::space>&);                \
  STORAGE template index_t update_left(B&, const weight<B>&, low_rank<B::scalar>&,                \
                                       block<const double>, block<const double>);                 \
  STORAGE template index_t update_right(B&, const weight<B>&, low_rank<B::scalar>&);              \
  STORAGE template matrix_of<B> shifted_weights(B&, const weight<B>&, block<const double>,        \
                                                block<const double>, double);                     \
  STORAGE template whitening<B> whiten(B&, const block<const double>&, const whitening_options&); \
  STORAGE template whitening<B> whiten_power(B&, const block<const double>&, double, double);     \
  STORAGE template class adamw<B>;                                                                \
  STORAGE template class factored_matrix<B>;                                                      \
  STORAGE template svd_basis<B> any_method::basis(B&, const weight<B>&, calibration<B>&, index_t) \
      const;                                                                                      \
  STORAGE template factored_matrix<B> calibration<B>::factor(                                     \
      std::shared_ptr<const weight<B>>, const any_method&, std::vector<index_t>)
