// SPDX-License-Identifier: Apache-2.0
#include "model/device.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "io/error.hpp"
#include "model/evaluation.hpp"
#include "model/layer.hpp"
#ifdef RESSVD_LLM_CUDA
#include "model/device_cuda.hpp"
#endif

namespace ressvd_llm {

namespace {

std::int64_t parameters_a_layer(const model_config& config) {
  std::int64_t parameters = 0;
  for (const linear_module& module : linear_modules(config, largest_layer(config)))
    parameters += module.out * module.in;
  return parameters;
}

#ifdef RESSVD_LLM_CUDA
void require_on_card(const model_config& config) {
  if (config.experts > 0)
    throw usage_error(config.file.string() +
                      ": --backend cuda has no mixtures of experts, --backend cpu has");
}
#endif

} // namespace

#ifdef RESSVD_LLM_CUDA

std::shared_ptr<device> open_device(const device_options& options) {
  if (ressvd::cuda_device_count() == 0)
    throw std::runtime_error("--backend cuda: there is no CUDA device");
  return std::make_shared<device>(options);
}

const device_options& options_of(const device& card) {
  return card.options;
}

std::string name_of(const device&) {
  cudaDeviceProp properties{};
  int current = 0;
  ressvd::detail::cuda::check(cudaGetDevice(&current));
  ressvd::detail::cuda::check(cudaGetDeviceProperties(&properties, current));
  return properties.name;
}

std::uint64_t memory_of(const device& card) {
  std::size_t available = 0;
  std::size_t total = 0;
  ressvd::detail::cuda::check(cudaMemGetInfo(&available, &total));
  const std::uint64_t limit = card.options.memory_limit;
  return limit == 0 ? available : std::min<std::uint64_t>(limit, available);
}

std::uint64_t peak_memory_of(const device& card) {
  return card.context->peak_bytes();
}

std::unique_ptr<forward_engine> make_forward_engine(const model_config& config,
                                                    const std::shared_ptr<device>& card,
                                                    const card_forward_options& options) {
  if (card == nullptr) return std::make_unique<cpu_forward>(config);
  require_on_card(config);
  return make_cuda_forward(config, *card, options);
}

#else

class device {
 public:
  device_options options;
};

std::shared_ptr<device> open_device(const device_options&) {
  throw usage_error("--backend cuda: this program was built without the CUDA backend");
}
const device_options& options_of(const device& card) {
  return card.options;
}
std::string name_of(const device&) {
  return {};
}
std::uint64_t memory_of(const device&) {
  return 0;
}
std::uint64_t peak_memory_of(const device&) {
  return 0;
}
std::unique_ptr<forward_engine> make_forward_engine(const model_config& config,
                                                    const std::shared_ptr<device>&,
                                                    const card_forward_options&) {
  return std::make_unique<cpu_forward>(config);
}

#endif

std::shared_ptr<device> choose_device(backend_choice backend, const device_options& options,
                                      [[maybe_unused]] const model_config& config) {
  if (backend == backend_choice::cpu) return nullptr;
  if (backend == backend_choice::cuda) {
    auto card = open_device(options);
#ifdef RESSVD_LLM_CUDA
    require_on_card(config);
#endif
    return card;
  }
#ifdef RESSVD_LLM_CUDA
  if (ressvd::cuda_device_count() == 0) return nullptr;
  if (config.experts > 0) {
    std::fprintf(stderr, "backend: cpu, a card has no mixtures of experts\n");
    return nullptr;
  }
  // Fewer parameters are through before a card's kernels are compiled.
  constexpr std::int64_t worth_a_card = 50'000'000;
  if (config.layers * parameters_a_layer(config) >= worth_a_card) {
    auto card = open_device(options);
    std::fprintf(stderr, "backend: cuda, %s\n", name_of(*card).c_str());
    return card;
  }
  std::fprintf(stderr, "backend: cpu, the model is small for a card\n");
#endif
  return nullptr;
}

language_model open_model(const std::filesystem::path& path, const std::shared_ptr<device>& card) {
  return language_model::open(path,
                              card != nullptr ? model_options{.memory_limit = 0} : model_options{});
}

card_memory estimate_card_memory(const model_config& config, dtype type, std::int64_t windows,
                                 std::int64_t window_length, std::int64_t copies,
                                 const card_forward_options& options) {
  const auto bytes = [](std::int64_t count, std::size_t size) {
    return static_cast<std::uint64_t>(count) * size;
  };
  const std::size_t size = size_of(type);
  const std::int64_t width = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const std::int64_t tokens = windows * window_length;
  const std::int64_t group =
      std::min(std::max<std::int64_t>(1, options.group_tokens / window_length), windows) *
      window_length;
  const std::int64_t heads = (config.heads + 2 * config.kv_heads) * config.head_dim;
  const std::int64_t scores =
      std::min(options.score_elements, config.heads * window_length * window_length);
  const std::int64_t logits = logits_block(config.vocab, tokens) * config.vocab;
  card_memory memory;
  memory.states = bytes(copies * tokens * width, sizeof(float));
  // Inputs, what becomes of them, and what is between the factors of a matrix.
  memory.buffers = bytes(group * (width + std::max(heads, inner)), size) +
                   bytes(group * std::max({heads, 2 * inner, width}), sizeof(float)) +
                   bytes(group * std::max(width, inner), size + 2 * sizeof(float)) +
                   bytes(scores, size < sizeof(float) ? sizeof(float) + size : size) +
                   bytes(2 * logits, sizeof(float));
  const std::int64_t outside = config.vocab * width;
  memory.layers = bytes(std::max(2 * parameters_a_layer(config), outside), size);
  memory.weights =
      bytes(config.layers * parameters_a_layer(config) + outside * (config.tied_embeddings ? 1 : 2),
            size);
  return memory;
}

std::uint64_t room_for_weights(const device& card, std::uint64_t available,
                               const model_config& config, std::int64_t window_length,
                               std::uint64_t state_bytes) {
  const dtype type = precision_of(config, options_of(card));
  const std::uint64_t taken =
      estimate_card_memory(config, type, 1, window_length, 1).least() + state_bytes;
  return available > taken ? available - taken : 0;
}

dtype precision_of(const model_config& config, const device_options& options) {
  const dtype type = options.precision.value_or(config.type.value_or(dtype::f32));
  return type == dtype::f16 || type == dtype::bf16 ? type : dtype::f32;
}

} // namespace ressvd_llm
