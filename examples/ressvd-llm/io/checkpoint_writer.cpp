// SPDX-License-Identifier: Apache-2.0
//
// OUTPUT.partial holds, until commit():
//   lock          held by the process that writes
//   data-0, …     the tensors' bytes in order of arrival, one file a shard
//   journal.json  what was complete at the last mark()
//   scratch/      the caller's files
//   checkpoint/   the files that will be OUTPUT
//   model.gguf    the file that will be OUTPUT in their place, put together by commit()
// The header of a safetensors file precedes its data and depends on all of it, so the shards are
// put together from the data files at the end. That needs the output's size on disk twice.
#include "io/checkpoint_writer.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <exception>
#include <map>
#include <set>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "io/error.hpp"
#include "io/json_text.hpp"
#include "io/mapped_file.hpp"
#include "io/output_file.hpp"
#include "io/paths.hpp"

namespace ressvd_llm {

namespace fs = std::filesystem;

struct written_tensor {
  std::string name;
  dtype type;
  std::vector<std::int64_t> shape;
  std::size_t shard;
  std::uint64_t begin;
  std::uint64_t bytes;
};

namespace {

constexpr std::uint64_t largest_journal = 268'435'456;
constexpr std::size_t block_bytes = 4'194'304;

// The magnitude (as bits of a float) from which rounding to the type gives infinity.
std::uint32_t overflow_threshold(dtype type) {
  switch (type) {
    case dtype::f16:
      return 0x477ff000u;
    case dtype::bf16:
      return 0x7f7f8000u;
    case dtype::q8_0: // 127 times the largest scale of 16 bits
      return 0x4afdf020u;
    case dtype::q4_0: // 8 times
      return 0x48fff000u;
    default:
      return 0x7f800000u;
  }
}

bool representable(float value, dtype type) {
  return (std::bit_cast<std::uint32_t>(value) & 0x7fffffffu) < overflow_threshold(type);
}

[[noreturn]] void fail(const fs::path& file, const std::error_code& error) {
  throw file_error(file, "cannot be written: " + error.message());
}

// An existing path without links, "." and "..", or the same of its existing part.
fs::path resolved(const fs::path& path) {
  const fs::path whole = fs::weakly_canonical(fs::absolute(path)).lexically_normal();
  return whole.has_filename() ? whole : whole.parent_path();
}

bool lies_in(const fs::path& path, const fs::path& directory) {
  return std::mismatch(directory.begin(), directory.end(), path.begin(), path.end()).first ==
         directory.end();
}

void require_size(const tensor_view& tensor, std::size_t values) {
  if (std::cmp_not_equal(tensor.elements(), values)) {
    throw std::invalid_argument("tensor " + tensor.name + " of shape " + to_string(tensor.shape) +
                                " is given " + std::to_string(values) + " values");
  }
}

std::string safetensors_header(const std::vector<const written_tensor*>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::uint64_t begin = 0;
  for (const written_tensor* tensor : tensors) {
    header[tensor->name] = {{"dtype", name_of(tensor->type)},
                            {"shape", tensor->shape},
                            {"data_offsets", {begin, begin + tensor->bytes}}};
    begin += tensor->bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  std::string prefix(8, '\0');
  std::memcpy(prefix.data(), &length, 8);
  return prefix + text;
}

std::string shard_name(std::size_t shard, std::size_t shards) {
  if (shards == 1) return "model.safetensors";
  const auto digits = [](std::size_t number) {
    const std::string text = std::to_string(number);
    return std::string(text.size() < 5 ? 5 - text.size() : 0, '0') + text;
  };
  return "model-" + digits(shard + 1) + "-of-" + digits(shards) + ".safetensors";
}

} // namespace

// The lock of an output: held until the object dies, or the process.
class directory_lock {
 public:
  explicit directory_lock(const fs::path& file)
      : descriptor_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666)) {
    if (descriptor_ < 0) fail(file, {errno, std::generic_category()});
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      ::close(descriptor_);
      throw usage_error(file.parent_path().string() + ": another process is writing it");
    }
  }
  directory_lock(const directory_lock&) = delete;
  directory_lock& operator=(const directory_lock&) = delete;
  ~directory_lock() { ::close(descriptor_); }

 private:
  int descriptor_;
};

struct checkpoint_writer::state {
  fs::path output;
  fs::path partial;
  writer_options options;
  std::optional<directory_lock> lock;
  std::optional<std::string> resumed;
  bool marked = false;
  bool committed = false;
  std::vector<written_tensor> tensors;
  std::set<std::string, std::less<>> names;
  std::vector<std::uint64_t> shard_bytes;
  std::optional<output_file> data;
  gguf_pairs description;

  state() = default;
  state(const state&) = delete;
  state& operator=(const state&) = delete;

  // What can be resumed stays. Shards put together so far are made again then.
  ~state() {
    data.reset();
    if (!lock || committed) return;
    if (marked) {
      std::error_code ignored;
      fs::remove_all(finished(), ignored);
    } else {
      remove_partial();
    }
  }

  fs::path data_file(std::size_t shard) const {
    return partial / ("data-" + std::to_string(shard));
  }
  fs::path journal() const { return partial / "journal.json"; }
  fs::path finished() const { return partial / "checkpoint"; }
  fs::path finished_gguf() const { return partial / "model.gguf"; }

  void require_usable_output(const fs::path& input);
  void take_partial();
  void empty_partial() const;
  void remove_partial() const noexcept;
  void read_journal();
  void begin_tensor(std::string_view name, dtype type, const std::vector<std::int64_t>& shape);
  void write_journal(std::string_view text) const;
  void assemble(std::size_t shard) const;
  void assemble_gguf() const;
  void write_index() const;
};

void checkpoint_writer::state::require_usable_output(const fs::path& input) {
  const std::string name = output.string();
  if (!input.empty()) {
    const fs::path source = resolved(input);
    if (source == output) throw usage_error(name + ": the output directory is the input directory");
    if (lies_in(source, partial)) {
      throw usage_error(name + ": the input lies in " + partial.string() +
                        ", where the output is prepared");
    }
  }
  if (!fs::is_directory(output.parent_path())) {
    throw usage_error(name + ": its parent directory does not exist");
  }
  const fs::file_status status = fs::symlink_status(output);
  if (!fs::exists(status)) return;
  if (!options.gguf) {
    if (!fs::is_directory(status)) throw usage_error(name + ": exists and is not a directory");
    if (fs::is_empty(output)) return;
  }
  // A run killed between its rename and its last removal leaves a partial without a checkpoint.
  if (fs::exists(partial / "lock") && !fs::exists(finished())) {
    lock.emplace(partial / "lock");
    remove_partial();
    lock.reset();
  } else if (fs::is_directory(fs::symlink_status(partial)) && fs::is_empty(partial)) {
    fs::remove(partial);
  }
  throw usage_error(name + (options.gguf ? ": exists" : ": exists and is not empty"));
}

// Creates OUTPUT.partial or takes over that of a dead process; never touches a directory of
// someone else that happens to have the name.
void checkpoint_writer::state::take_partial() {
  const fs::file_status status = fs::symlink_status(partial);
  if (!fs::exists(status)) {
    fs::create_directory(partial);
  } else if (!fs::is_directory(status) ||
             !(fs::is_empty(partial) || fs::exists(partial / "lock"))) {
    throw usage_error(partial.string() + ": exists and is not an interrupted run of this program");
  }
  lock.emplace(partial / "lock");
}

void checkpoint_writer::state::empty_partial() const {
  for (const fs::directory_entry& entry : fs::directory_iterator(partial)) {
    if (entry.path().filename() != "lock") fs::remove_all(entry.path());
  }
}

// The lock goes last: it is what tells an interrupted run from a stranger's directory.
void checkpoint_writer::state::remove_partial() const noexcept {
  try {
    empty_partial();
    fs::remove_all(partial);
  } catch (const std::exception&) {
    // What cannot be removed stays; the next run takes it over.
  }
}

void checkpoint_writer::state::read_journal() {
  const nlohmann::json json = parse_json(journal(), read_text(journal(), largest_journal));
  try {
    shard_bytes = json.at("shard_bytes").get<std::vector<std::uint64_t>>();
    options.shard_bytes = json.at("largest_shard");
    for (const nlohmann::json& item : json.at("tensors")) {
      const std::optional<dtype> type = parse_dtype(item.at("dtype").get<std::string>());
      if (!type) throw file_error(journal(), "names an unknown element type");
      tensors.push_back({item.at("name"), *type, item.at("shape"), item.at("shard"),
                         item.at("begin"), item.at("bytes")});
      const written_tensor& tensor = tensors.back();
      if (tensor.shard >= shard_bytes.size() || tensor.begin > shard_bytes[tensor.shard] ||
          tensor.bytes > shard_bytes[tensor.shard] - tensor.begin) {
        throw file_error(journal(), "names a tensor outside its data file");
      }
      names.insert(tensor.name);
    }
    resumed = json.at("state").get<std::string>();
  } catch (const nlohmann::json::exception&) {
    throw file_error(journal(), "is malformed; remove " + partial.string() + " and start again");
  }
  for (std::size_t shard = 0; shard < shard_bytes.size(); ++shard) {
    std::error_code error;
    const std::uint64_t size = fs::file_size(data_file(shard), error);
    if (error || size < shard_bytes[shard]) {
      throw file_error(data_file(shard), "is shorter than the journal says; remove " +
                                             partial.string() + " and start again");
    }
    fs::resize_file(data_file(shard), shard_bytes[shard]);
  }
  for (std::size_t shard = shard_bytes.size(); fs::exists(data_file(shard)); ++shard) {
    fs::remove(data_file(shard));
  }
  if (!shard_bytes.empty()) {
    data.emplace(data_file(shard_bytes.size() - 1), output_file::open_mode::append);
  }
}

checkpoint_writer::checkpoint_writer(const fs::path& output, const fs::path& input,
                                     const writer_options& options)
    : state_(std::make_unique<state>()) {
  state_->options = options;
  try {
    state_->output = resolved(output);
    state_->partial = state_->output;
    state_->partial += ".partial";
    state_->require_usable_output(input);
    state_->take_partial();
    if (options.resume && fs::exists(state_->journal())) {
      state_->marked = true;
      state_->resumed.emplace();
      state_->read_journal();
    } else {
      state_->empty_partial();
    }
    fs::remove_all(state_->finished());
    fs::create_directory(state_->finished());
    fs::create_directory(scratch());
  } catch (const fs::filesystem_error& error) {
    fail(error.path1().empty() ? output : error.path1(), error.code());
  }
}

checkpoint_writer::checkpoint_writer(checkpoint_writer&&) noexcept = default;
checkpoint_writer& checkpoint_writer::operator=(checkpoint_writer&&) noexcept = default;
checkpoint_writer::~checkpoint_writer() = default;

void checkpoint_writer::state::begin_tensor(std::string_view name, dtype type,
                                            const std::vector<std::int64_t>& shape) {
  if (!names.emplace(name).second) {
    throw std::invalid_argument("tensor " + std::string(name) + " is written twice");
  }
  if (is_quantised(type) && !options.gguf) {
    throw std::invalid_argument("tensor " + std::string(name) + " of type " +
                                std::string(name_of(type)) + " in a model directory");
  }
  const tensor_view extents{std::string(name), type, shape, nullptr};
  const std::uint64_t bytes = extents.bytes();
  if (shard_bytes.empty() ||
      (shard_bytes.back() > 0 && shard_bytes.back() + bytes > options.shard_bytes)) {
    if (data) {
      data->sync();
      data->close();
    }
    data.emplace(data_file(shard_bytes.size()));
    shard_bytes.push_back(0);
  }
  tensors.push_back(
      {std::string(name), type, shape, shard_bytes.size() - 1, shard_bytes.back(), bytes});
  shard_bytes.back() += bytes;
}

void checkpoint_writer::add(std::string_view name, const std::vector<std::int64_t>& shape,
                            std::span<const float> values, dtype type) {
  const tensor_view extents{std::string(name), type, shape, nullptr};
  require_size(extents, values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!representable(values[i], type)) {
      throw file_error(state_->output, name,
                       "element " + std::to_string(i) + " (" + std::to_string(values[i]) +
                           ") has no finite value in " + std::string(name_of(type)));
    }
  }
  state_->begin_tensor(name, type, shape);
  std::vector<std::byte> block(std::min(block_bytes, extents.bytes()));
  while (!values.empty()) {
    const std::size_t fitting =
        block.size() / size_of(type) * static_cast<std::size_t>(block_of(type));
    const auto part = values.first(std::min(values.size(), fitting));
    encode(part, type, block.data());
    state_->data->write(
        std::span(block).first(bytes_of(type, static_cast<std::int64_t>(part.size()))));
    values = values.subspan(part.size());
  }
}

void checkpoint_writer::add(std::string_view name, const std::vector<std::int64_t>& shape,
                            std::span<const std::int32_t> values) {
  const tensor_view tensor{std::string(name), dtype::i32, shape,
                           reinterpret_cast<const std::byte*>(values.data())};
  require_size(tensor, values.size());
  add(tensor);
}

void checkpoint_writer::add(const tensor_view& tensor) {
  state_->begin_tensor(tensor.name, tensor.type, tensor.shape);
  if (tensor.interleaved == 0) return state_->data->write({tensor.data, tensor.bytes()});
  const std::size_t row_bytes = tensor.bytes() / static_cast<std::size_t>(tensor.rows());
  for (std::int64_t row = 0; row < tensor.rows(); ++row)
    state_->data->write({tensor.row(row), row_bytes});
}

void checkpoint_writer::state::write_journal(std::string_view text) const {
  nlohmann::ordered_json json;
  json["state"] = text;
  json["largest_shard"] = options.shard_bytes;
  json["shard_bytes"] = shard_bytes;
  json["tensors"] = nlohmann::ordered_json::array();
  for (const written_tensor& tensor : tensors) {
    json["tensors"].push_back({{"name", tensor.name},
                               {"dtype", name_of(tensor.type)},
                               {"shape", tensor.shape},
                               {"shard", tensor.shard},
                               {"begin", tensor.begin},
                               {"bytes", tensor.bytes}});
  }
  write_whole_file(journal(), json.dump());
}

void checkpoint_writer::mark(std::string_view text) {
  if (state_->data) state_->data->sync();
  state_->write_journal(text);
  state_->marked = true;
}

const std::optional<std::string>& checkpoint_writer::resumed_state() const {
  return state_->resumed;
}

bool checkpoint_writer::resumable() const {
  return state_->marked;
}

const fs::path& checkpoint_writer::partial() const {
  return state_->partial;
}

fs::path checkpoint_writer::scratch() const {
  return state_->partial / "scratch";
}

void checkpoint_writer::add_file(std::string_view name, std::string_view content) {
  output_file file(state_->finished() / name);
  file.write(content);
  file.sync();
  file.close();
}

void checkpoint_writer::copy_file(const fs::path& file) {
  const mapped_file content(file);
  add_file(file.filename().string(),
           {reinterpret_cast<const char*>(content.bytes().data()), content.bytes().size()});
}

void checkpoint_writer::describe(gguf_pairs pairs) {
  state_->description = std::move(pairs);
}

std::uint64_t checkpoint_writer::tensor_bytes() const {
  std::uint64_t sum = 0;
  for (const std::uint64_t bytes : state_->shard_bytes)
    sum += bytes;
  return sum;
}

// Wider elements first keeps every tensor aligned to its element size.
void checkpoint_writer::state::assemble(std::size_t shard) const {
  std::vector<const written_tensor*> order;
  for (const written_tensor& tensor : tensors) {
    if (tensor.shard == shard) order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return size_of(a->type) > size_of(b->type);
  });
  const mapped_file source(data_file(shard));
  output_file file(finished() / shard_name(shard, shard_bytes.size()));
  file.write(safetensors_header(order));
  for (const written_tensor* tensor : order) {
    const auto bytes = source.bytes().subspan(tensor->begin, tensor->bytes);
    file.write(bytes);
    source.release(bytes);
  }
  file.sync();
  file.close();
}

void checkpoint_writer::state::assemble_gguf() const {
  std::vector<gguf_tensor> list;
  for (const written_tensor& tensor : tensors)
    list.push_back({tensor.name, tensor.type, tensor.shape, tensor.bytes});
  std::vector<mapped_file> sources;
  for (std::size_t shard = 0; shard < shard_bytes.size(); ++shard)
    sources.emplace_back(data_file(shard));
  output_file file(finished_gguf());
  file.write(gguf_header(description, list));
  for (const written_tensor& tensor : tensors) {
    const mapped_file& source = sources[tensor.shard];
    const auto bytes = source.bytes().subspan(tensor.begin, tensor.bytes);
    file.write(bytes);
    file.write(
        std::string((gguf_alignment - bytes.size() % gguf_alignment) % gguf_alignment, '\0'));
    source.release(bytes);
  }
  file.sync();
  file.close();
}

void checkpoint_writer::state::write_index() const {
  std::uint64_t total = 0;
  std::map<std::string, std::string> shard_of;
  for (const written_tensor& tensor : tensors) {
    total += tensor.bytes;
    shard_of[tensor.name] = shard_name(tensor.shard, shard_bytes.size());
  }
  nlohmann::ordered_json index;
  index["metadata"] = {{"total_size", total}};
  index["weight_map"] = shard_of;
  write_whole_file(finished() / "model.safetensors.index.json", index.dump(2) + "\n");
}

void checkpoint_writer::commit() {
  state& s = *state_;
  if (s.shard_bytes.empty()) throw std::invalid_argument("a checkpoint without tensors");
  s.data->close();
  s.data.reset();
  std::error_code error;
  if (s.options.gguf) {
    s.assemble_gguf();
    fs::remove_all(s.finished(), error); // its absence tells that OUTPUT is complete
    if (!error) fs::rename(s.finished_gguf(), s.output, error);
  } else {
    for (std::size_t shard = 0; shard < s.shard_bytes.size(); ++shard)
      s.assemble(shard);
    if (s.shard_bytes.size() > 1) s.write_index();
    fs::rename(s.finished(), s.output, error);
  }
  if (error) fail(s.output, error);
  s.committed = true;
  s.remove_partial();
}

} // namespace ressvd_llm
