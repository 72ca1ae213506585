// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/dtype.hpp"
#include "io/gguf.hpp"
#include "io/tensor.hpp"

namespace ressvd_llm {

struct writer_options {
  // Tensors are grouped into shards of at most this many bytes (a larger tensor is a shard alone).
  std::uint64_t shard_bytes = 5'000'000'000;
  // Continue from the last mark() of an interrupted run, when there is one.
  bool resume = false;
  // OUTPUT is a GGUF file of the pairs that describe() is given, and the tensors as they are added:
  // names, order of rows and types are those of GGUF already.
  bool gguf = false;
};

// Writes a model directory (or a GGUF file) tensor by tensor, without keeping tensors in memory.
// Everything goes to the sibling directory "OUTPUT.partial" and appears as OUTPUT at commit(), by
// one rename. An object that is destroyed without commit() (an error) removes what it wrote, unless
// there is a mark to resume from; a process that is killed leaves OUTPUT.partial in any case. The
// next run resumes or discards it.
class checkpoint_writer {
 public:
  // Throws usage_error when output is the input, when it exists and is not an empty directory (a
  // file must not exist), or when another process is writing it.
  checkpoint_writer(const std::filesystem::path& output, const std::filesystem::path& input,
                    const writer_options& options = {});
  checkpoint_writer(checkpoint_writer&&) noexcept;
  checkpoint_writer& operator=(checkpoint_writer&&) noexcept;
  ~checkpoint_writer();

  // Appends a tensor, rounded to the given type. Throws file_error when a rounded value is not
  // finite or when the disk refuses, std::invalid_argument on a second tensor of this name or a
  // size that is not the shape's.
  void add(std::string_view name, const std::vector<std::int64_t>& shape,
           std::span<const float> values, dtype type);

  // The same for integers, of type I32.
  void add(std::string_view name, const std::vector<std::int64_t>& shape,
           std::span<const std::int32_t> values);

  // Appends a tensor as it is, for example one of the original checkpoint, with its rows in order.
  // Throws std::invalid_argument for a quantised one in a model directory.
  void add(const tensor_view& tensor);

  // Makes everything added so far, and the files in scratch(), survive an error or a kill; state is
  // the caller's own note (any text) of how far it got.
  void mark(std::string_view state);

  // The text of the last mark when resuming an interrupted run; nothing when starting afresh.
  const std::optional<std::string>& resumed_state() const;

  // Whether there is a mark, of this run or of the one it resumes: an error leaves partial().
  bool resumable() const;
  const std::filesystem::path& partial() const;

  // A directory for the caller's own intermediate files.
  std::filesystem::path scratch() const;

  // A small file beside the weights (config.json), and a copy of an existing one (tokenizer.model).
  void add_file(std::string_view name, std::string_view content);
  void copy_file(const std::filesystem::path& file);

  // What a GGUF file says of its model.
  void describe(gguf_pairs pairs);

  // Bytes of tensors added so far, those of the resumed run included.
  std::uint64_t tensor_bytes() const;

  // Assembles model.safetensors, or shards and model.safetensors.index.json, or the GGUF file, and
  // renames the whole to the output. Nothing may be called afterwards.
  void commit();

 private:
  struct state;
  std::unique_ptr<state> state_;
};

} // namespace ressvd_llm
