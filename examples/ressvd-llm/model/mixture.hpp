// SPDX-License-Identifier: Apache-2.0
//
// Which tokens the router of a mixture sends to which experts, and what they bring back.
#pragma once

#include <cstdint>
#include <vector>

#include "io/config.hpp"
#include "model/buffer.hpp"
#include "model/linear.hpp"

namespace ressvd_llm {

// The experts of some tokens. Every token has as many rows as experts; the rows of an expert are
// its tokens in order, and those of all experts follow each other.
struct routing {
  std::int64_t per_token = 0;
  std::vector<std::int64_t> begin; // experts + 1: rows [begin[e], begin[e + 1]) are expert e's
  std::vector<std::int64_t> token; // of every row
  std::vector<float> weight;       // of every row
  std::vector<std::int64_t> rows;  // tokens × per_token, by expert
  float_buffer probabilities;      // tokens × experts

  std::int64_t experts() const { return static_cast<std::int64_t>(begin.size()) - 1; }
  std::int64_t row_count() const { return static_cast<std::int64_t>(token.size()); }
  std::int64_t first(std::int64_t expert) const { return begin[static_cast<std::size_t>(expert)]; }
  std::int64_t count(std::int64_t expert) const { return first(expert + 1) - first(expert); }
};

// The most probable experts of every token, x tokens × hidden; of equally probable ones the first.
// Their weights are the probabilities, divided by their sum where the config says so.
void route(const model_config& config, const weight_matrix& router, const float* x,
           std::int64_t tokens, routing& result);

// Each row's token of x (tokens × width).
void gather_rows(const routing& routes, const float* x, std::int64_t width, float* rows);

// Adds to every token of y its rows, each times its weight where `weighted`; by expert, whatever
// the number of threads.
void add_rows(const routing& routes, const float* rows, std::int64_t width, bool weighted,
              float* y);

// Of y += Σ weight·row, from the gradient g at y (tokens × width): those at the rows, and at each
// row's weight.
void add_rows_back(const routing& routes, const float* rows, const float* g, std::int64_t width,
                   float* row_gradient, float* weight_gradient);

// x += the gradient at the router's input from the one at the rows' weights. The choice of experts
// counts as given. `scratch` grows to tokens × experts.
void route_back(const model_config& config, const routing& routes, const weight_matrix& router,
                const float* weight_gradient, float_buffer& scratch, float* x);

} // namespace ressvd_llm
