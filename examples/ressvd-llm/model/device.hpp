// SPDX-License-Identifier: Apache-2.0
//
// Where a run computes: the CPU, or a card that its engines share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "io/config.hpp"
#include "io/dtype.hpp"
#include "model/forward.hpp"
#include "model/language_model.hpp"

namespace ressvd_llm {

enum class backend_choice : std::uint8_t { cpu, cuda, automatic };

struct device_options {
  std::filesystem::path kernel_cache = {}; // folder for compiled kernels
  std::uint64_t memory_limit = 0;          // most bytes on the card; 0: what is free there
  std::optional<dtype> precision = {};     // of the factors of products; absent: the model's type
};

// A card. Its engines share a stream: what one leaves there another may read.
class device;

// Throws usage_error where the CUDA backend is not built in, and std::runtime_error without a card.
std::shared_ptr<device> open_device(const device_options& options);

// The card for this choice, or null for the CPU; where that was left open and there is a card, a
// line says which of the two it is. Throws usage_error for a mixture of experts on a card.
std::shared_ptr<device> choose_device(backend_choice backend, const device_options& options,
                                      const model_config& config);

// A model as its engine reads it: on a card from where it is mapped.
language_model open_model(const std::filesystem::path& path, const std::shared_ptr<device>& card);

const device_options& options_of(const device& card);
std::string name_of(const device& card);
std::uint64_t memory_of(const device& card);      // bytes that a run may take
std::uint64_t peak_memory_of(const device& card); // bytes that it took at most

struct card_forward_options {
  std::uint64_t weight_bytes = ~std::uint64_t{0}; // of matrices that stay on the card, at most
  std::int64_t group_tokens = 8192;               // tokens that pass through a layer at a time
  // Scores that attention holds at a time: 384 MiB with weights in 16 bits. Of 32 heads at 4096
  // tokens these are blocks of 512 queries.
  std::int64_t score_elements = std::int64_t{1} << 26;
};

// The forward pass on the CPU for null, else on the card; models that are mapped must outlive it
// there. Throws usage_error for a mixture of experts on a card.
std::unique_ptr<forward_engine> make_forward_engine(const model_config& config,
                                                    const std::shared_ptr<device>& card,
                                                    const card_forward_options& options = {});

// What a pass over windows takes on the card.
struct card_memory {
  std::uint64_t states = 0;  // hidden states of all tokens, `copies` of them
  std::uint64_t buffers = 0; // of one group of windows, and logits
  std::uint64_t layers = 0;  // the weights of two layers, or of what stands outside them
  std::uint64_t weights = 0; // of all matrices
  std::uint64_t least() const { return states + buffers + layers; }
};

card_memory estimate_card_memory(const model_config& config, dtype type, std::int64_t windows,
                                 std::int64_t window_length, std::int64_t copies,
                                 const card_forward_options& options = {});

// What a pass over windows of this length, with so many bytes of hidden states, leaves to matrices
// of so many bytes of the card.
std::uint64_t room_for_weights(const device& card, std::uint64_t available,
                               const model_config& config, std::int64_t window_length,
                               std::uint64_t state_bytes);

// The type in which an engine reads a model's matrices.
dtype precision_of(const model_config& config, const device_options& options);

} // namespace ressvd_llm
