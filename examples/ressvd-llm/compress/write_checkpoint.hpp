// SPDX-License-Identifier: Apache-2.0
//
// The pieces of the compressed checkpoint, as docs/checkpoint_format.md describes it.
#pragma once

#include <cstdint>
#include <filesystem>

#include "compress/model_ranks.hpp"
#include "compress/options.hpp"
#include "io/checkpoint_writer.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

// Everything of the original that no compressed matrix replaces, converted where a type was asked
// for.
void write_kept_tensors(checkpoint_writer& writer, const language_model& model,
                        const model_ranks& ranks, const compress_options& options);

// The compressed matrices of a layer: factors, or their product under the original name (in GGUF,
// the one it has there). With them what else of it a refinement trains.
void write_layer(checkpoint_writer& writer, const language_model& model, std::int64_t layer,
                 const layer_weights& weights, const compress_options& options);

// config.json with the object "ressvd", and the tokenizer's files; or the pairs of the GGUF file.
void write_description(checkpoint_writer& writer, const language_model& model,
                       const model_ranks& ranks, const compress_options& options,
                       double achieved_ratio);

// The whole model as a GGUF file, compressed matrices multiplied out.
void write_converted(checkpoint_writer& writer, const language_model& model,
                     const compress_options& options);

bool has_gguf_tokenizer(const std::filesystem::path& file);

} // namespace ressvd_llm
