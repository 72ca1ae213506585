// SPDX-License-Identifier: Apache-2.0
//
// The variables and functions of an engine, which the texts leave out. Compiled, never linked.
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "ressvd/compiled.hpp"

using ressvd::index_t;
using backend = ressvd::eigen_backend<float>;
using wide_backend = ressvd::eigen_backend<double>;

// The engine.
extern const index_t out, in, tokens, rank;
extern const float* w;            // out × in
extern const float* x;            // tokens × in
extern const float* x_compressed; // tokens × in
extern float* y;                  // tokens × out
extern const void* tensor_data;
extern ressvd::bfloat16* u_buffer;
extern ressvd::bfloat16* v_buffer;
extern void* buffer;
extern const std::size_t buffer_bytes;
float* pool_take(index_t elements);
void pool_give_back(float* memory);
void engine_takes(const float* data, index_t rows, index_t cols);
template <class Factors>
void take(const Factors& factors);
template <class... Values>
void log(Values... values);
void report_failure(const char* what);
double final_layer_error(index_t layers, double ratio);

// What an earlier block made.
extern backend be;
extern const ressvd::matrix_view<const float> weights;
extern const ressvd::matrix_view<const float> fisher;
extern const float *wq, *wk; // out × in
extern ressvd::gram_accumulator<backend> gram;
extern ressvd::calibration<backend> input;
extern ressvd::shifted_input<backend> shifted;
extern const ressvd::whitening<backend> whitening;
extern ressvd::low_rank<float> pair;
