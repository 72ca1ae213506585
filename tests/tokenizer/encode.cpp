// SPDX-License-Identifier: Apache-2.0
//
// encode TOKENIZER.JSON or MODEL.GGUF: reads JSON texts, one a line, and prints for each its ids
// and what these are decoded to, also as JSON. For test_tokenizer.py.
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/tokenizer.hpp"

int main(int count, char** arguments) {
  if (count != 2) return 2;
  try {
    const std::filesystem::path file = arguments[1];
    const auto tokenizer = file.extension() == ".gguf" ? ressvd_llm::gguf_file_tokenizer(file)
                                                       : ressvd_llm::json_tokenizer(file);
    std::string line;
    while (std::getline(std::cin, line)) {
      const auto value = nlohmann::json::parse(line);
      const auto ids = value.is_string() ? tokenizer->encode(value.get<std::string>())
                                         : value.get<std::vector<std::int32_t>>();
      std::cout << nlohmann::json{{"ids", ids}, {"text", tokenizer->decode(ids)}}.dump() << '\n';
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
