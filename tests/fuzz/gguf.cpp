// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as a GGUF file: refused, or tensors that lie in the file and can be decoded, pairs that
// can be read, and a config and a tokenizer or refusals of them.
#include "io/gguf.hpp"

#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "fuzz.hpp"
#include "io/error.hpp"
#include "io/gguf_model.hpp"
#include "io/gguf_tokenizer.hpp"
#include "io/tensor.hpp"
#include "tokenizer/gguf_text.hpp"

namespace {

template <class F>
void may_refuse(const F& f) {
  try {
    f();
  } catch (const ressvd_llm::file_error& error) {
    fuzz::require_message(error);
  }
}

void read_all(const std::uint8_t* data, std::size_t size) {
  const ressvd_llm::gguf_content file =
      ressvd_llm::read_gguf("x.gguf", std::as_bytes(std::span(data, size)));
  std::set<std::string> names;
  for (const ressvd_llm::stored_tensor& tensor : file.tensors) {
    fuzz::require(names.insert(tensor.name).second);
    fuzz::require(tensor.data.empty() ||
                  (tensor.data.data() >= std::as_bytes(std::span(data, size)).data() &&
                   tensor.data.size() <= size));
    const std::optional<ressvd_llm::dtype> type = ressvd_llm::parse_dtype(tensor.type);
    if (!type || type == ressvd_llm::dtype::i32) continue;
    ressvd_llm::tensor_view view{tensor.name, *type, tensor.shape, tensor.data.data()};
    fuzz::require(view.bytes() == tensor.data.size());
    if (view.rows() % 4 == 0) view.interleaved = 4;
    std::vector<float> values(static_cast<std::size_t>(view.elements()));
    ressvd_llm::decode_rows(view, 0, view.rows(), std::span(values));
  }
  for (const ressvd_llm::gguf_value& value : file.metadata.values()) {
    may_refuse([&] { file.metadata.integer(value.key); });
    may_refuse([&] { file.metadata.number(value.key); });
    may_refuse([&] { file.metadata.flag(value.key); });
    may_refuse([&] { file.metadata.text(value.key); });
    may_refuse([&] { file.metadata.texts(value.key); });
    may_refuse([&] { file.metadata.integers(value.key); });
    may_refuse([&] { file.metadata.numbers(value.key); });
    may_refuse([&] { file.metadata.flags(value.key); });
  }
  may_refuse([&] {
    const auto found = ressvd_llm::read_gguf_tokenizer(file.metadata);
    if (!found) return;
    const auto tokenizer = ressvd_llm::make_gguf_tokenizer("x.gguf", *found);
    tokenizer->decode(tokenizer->encode("a text, <s>and 2\xe2\x96\n"));
  });
  may_refuse([&] {
    const auto config = ressvd_llm::parse_config("x.gguf", ressvd_llm::config_text_of(file));
    fuzz::require(config.layers > 0 && config.head_dim > 0);
  });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  may_refuse([&] { read_all(data, size); });
  return 0;
}
