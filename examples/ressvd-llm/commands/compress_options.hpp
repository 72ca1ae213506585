// SPDX-License-Identifier: Apache-2.0
//
// The command line of compress: presets, options, and which options go together.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "compress/options.hpp"

namespace CLI {
class App;
}

namespace ressvd_llm {

// A choice of method, allocation and fit under one name.
struct preset {
  std::string_view name;
  std::string_view method;
  ressvd_llm::allocation allocation = allocation::uniform;
  bool retruncate = false;
  double input_power = 1; // kfac-svd
  double output_power = 1;
  bool self_samples = false; // as many as of a calibration file
  std::int64_t refine = 0;   // epochs
  std::string_view reason;   // why one would take it
};

struct compress_line {
  compress_options options; // complete after resolve()
  std::filesystem::path json;
  std::int64_t rank = 32; // of an adapter
  std::string choice;     // what runs and why, in one line

  // As given, for resolve().
  const ressvd_llm::preset* preset = nullptr;
  std::optional<ressvd_llm::allocation> allocation;
  std::string last_layers = "auto";
  std::string calibration = "self";
  std::string power = "auto";
};

void add_compress_options(CLI::App& command, compress_line& line);

// Parts of them that other commands share: refinement, the samples or their Grams, and where it all
// runs.
void add_refine_options(CLI::App& command, compress_line& line);
void add_sample_options(CLI::App& command, compress_line& line);
void add_machine_options(CLI::App& command, compress_line& line);

// For a command that draws samples and chooses no ranks: refuses options that have no effect.
// Throws usage_error.
void resolve_samples(const CLI::App& command, compress_line& line);

// Fills in what the preset leaves to it and refuses options that have no effect together. The
// preset is the one named; without a name it is the first, `best`, unless a method is named.
// Explicit options replace parts of it. Throws usage_error.
void resolve(const CLI::App& command, compress_line& line);

} // namespace ressvd_llm
