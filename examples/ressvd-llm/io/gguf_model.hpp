// SPDX-License-Identifier: Apache-2.0
//
// What a GGUF file says of a model, in the terms of a Hugging Face checkpoint, and back. The
// architectures llama (Mistral's and Mixtral's models are of it), qwen2, qwen3, qwen3moe, gemma2
// and gemma3; phi3 is read, and written as a llama without fused matrices.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/config.hpp"
#include "io/gguf.hpp"

namespace ressvd_llm {

// Factors that every frequency of the rotary embedding is divided by; no weights.
inline constexpr std::string_view rope_factors_name = "rope_freqs.weight";

// The key of the text that holds what compress says of its output, as config.json's "ressvd" does.
inline constexpr std::string_view compressed_key = "ressvd.compressed";

// The config.json that describes the same model. Throws file_error for what the file lacks and for
// what no config.json of these families says.
std::string config_text_of(const gguf_content& content);

// "blk.3.attn_q.weight" ↔ "model.layers.3.self_attn.q_proj.weight". A name of neither stays.
std::string checkpoint_name(model_family family, std::string_view gguf_name);
std::string gguf_name(model_family family, std::string_view checkpoint_name);

// GGUF has the matrices of all experts as one tensor, experts × out × in. The part that is an
// expert's, "model.layers.3.mlp.experts.7.up_proj.weight" or as Mixtral calls it, by the name that
// checkpoint_name() gives the whole; empty for another tensor.
std::string expert_part(const model_config& config, std::string_view whole, std::int64_t expert);
// The name in a checkpoint of what checkpoint_name() calls `name`: Mixtral's router has another.
std::string name_in(const model_config& config, std::string_view name);
// "blk.3.ffn_up_exps.weight" of "up".
std::string stacked_gguf_name(std::int64_t layer, std::string_view projection);

// The head size where a file that is written stores the tensor's rows with the halves of rotary
// heads interleaved (q and k of llama), else 0. The name is the checkpoint's. One that is read does
// the same, but for phi3.
std::int64_t interleaved_heads(const model_config& config, std::string_view checkpoint_name);

// What a file stores the elements of a tensor larger by: 1 for norms around zero, else 0.
float added_in_gguf(const model_config& config, std::string_view checkpoint_name);

// The architecture as GGUF names it. Throws usage_error, which names the model's config, where
// llama.cpp has no architecture for the model.
std::string_view gguf_architecture(const model_config& config);

// The pairs that describe a model, without a tokenizer.
gguf_pairs describe_for_gguf(const model_config& config);

} // namespace ressvd_llm
