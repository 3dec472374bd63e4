#include "io/safetensors.h"

#include "io/json.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <tuple>

namespace zerosched::detail {

namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
// The reference implementation's own limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr uint64_t kAlignment = 64;
constexpr const char* kMetadata = "__metadata__";

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("not a whole safetensors file: " + what);
}

const std::map<std::string, c10::ScalarType>& dtypes() {
  using c10::ScalarType;
  static const std::map<std::string, ScalarType> table = {{"F64", ScalarType::Double},
      {"F32", ScalarType::Float}, {"F16", ScalarType::Half}, {"BF16", ScalarType::BFloat16},
      {"I64", ScalarType::Long}, {"I32", ScalarType::Int}, {"I16", ScalarType::Short},
      {"I8", ScalarType::Char}, {"U8", ScalarType::Byte}, {"BOOL", ScalarType::Bool}};
  return table;
}

// Bytes of a tensor, or fails where the product would not fit.
uint64_t byte_count_of(const SafetensorsEntry& entry) {
  uint64_t bytes = c10::elementSize(entry.dtype);
  if (std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end()) return 0;
  for (const int64_t size : entry.shape) {
    if (bytes > std::numeric_limits<uint64_t>::max() / 4 / static_cast<uint64_t>(size)) {
      fail("tensor '" + entry.name + "' is too large");
    }
    bytes *= static_cast<uint64_t>(size);
  }
  return bytes;
}

SafetensorsEntry parse_entry(const std::string& name, const json& value) {
  SafetensorsEntry entry;
  entry.name = name;
  const std::string of_tensor = " of tensor '" + name + "'";
  if (!value.is_object()) fail("what describes tensor '" + name + "' is not an object");
  const auto dtype = value.find("dtype");
  if (dtype == value.end() || !dtype->is_string()) fail("the dtype" + of_tensor + " is missing");
  const auto known = safetensors_dtype(dtype->get<std::string>());
  if (!known) fail("the dtype" + of_tensor + " is unknown: " + dtype->get<std::string>());
  entry.dtype = *known;
  const auto shape = value.find("shape");
  if (shape == value.end() || !shape->is_array()) fail("the shape" + of_tensor + " is missing");
  for (const json& size : *shape) {
    if (!size.is_number_unsigned() ||
        size.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      fail("the shape" + of_tensor + " is not of sizes");
    }
    entry.shape.push_back(size.get<int64_t>());
  }
  const auto offsets = value.find("data_offsets");
  if (offsets == value.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    fail("the data_offsets" + of_tensor + " are missing");
  }
  entry.begin = (*offsets)[0].get<uint64_t>();
  entry.end = (*offsets)[1].get<uint64_t>();
  if (entry.end < entry.begin || entry.end - entry.begin != byte_count_of(entry)) {
    fail("the data_offsets" + of_tensor + " do not fit its shape");
  }
  return entry;
}

json parse_header_json(const std::string& text) {
  json header;
  try {
    header = parse_json(text);
  } catch (const std::runtime_error& error) {
    fail(std::string("its header: ") + error.what());
  }
  if (!header.is_object()) fail("its header is not a JSON object");
  return header;
}

}  // namespace

const std::string& safetensors_name(c10::ScalarType dtype) {
  for (const auto& [name, type] : dtypes()) {
    if (type == dtype) return name;
  }
  throw std::runtime_error(std::string("safetensors has no type for ") + c10::toString(dtype));
}

std::optional<c10::ScalarType> safetensors_dtype(const std::string& name) {
  const auto known = dtypes().find(name);
  if (known == dtypes().end()) return std::nullopt;
  return known->second;
}

std::string make_safetensors_header(
    std::vector<SafetensorsEntry>& entries, const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t at = 0;
  for (SafetensorsEntry& entry : entries) {
    entry.begin = at;
    entry.end = at += byte_count_of(entry);
    header[entry.name] = {{"dtype", safetensors_name(entry.dtype)}, {"shape", entry.shape},
        {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = header.dump();
  // The data starts aligned, for those who map the file.
  const uint64_t unaligned = kLengthBytes + text.size();
  text.append((kAlignment - unaligned % kAlignment) % kAlignment, ' ');
  std::string bytes;
  for (uint64_t i = 0; i < kLengthBytes; ++i) bytes += static_cast<char>((text.size() >> (8 * i)) & 0xff);
  return bytes + text;
}

uint64_t safetensors_header_bytes(const char* first_8, uint64_t file_bytes) {
  uint64_t length = 0;
  for (uint64_t i = 0; i < kLengthBytes; ++i) {
    length |= static_cast<uint64_t>(static_cast<unsigned char>(first_8[i])) << (8 * i);
  }
  if (length > kMaxHeaderBytes || file_bytes < kLengthBytes || length > file_bytes - kLengthBytes) {
    fail("its header would be " + std::to_string(length) + " bytes long, in a file of " +
         std::to_string(file_bytes));
  }
  return kLengthBytes + length;
}

SafetensorsHeader parse_safetensors_header(const std::string& bytes, uint64_t file_bytes) {
  if (bytes.size() < kLengthBytes) fail("it has only " + std::to_string(file_bytes) + " bytes");
  SafetensorsHeader header;
  header.data_begin = safetensors_header_bytes(bytes.data(), file_bytes);
  if (bytes.size() < header.data_begin) fail("its header is cut off");
  const json parsed = parse_header_json(bytes.substr(kLengthBytes, header.data_begin - kLengthBytes));
  for (const auto& [name, value] : parsed.items()) {
    if (name != kMetadata) {
      header.entries.push_back(parse_entry(name, value));
      continue;
    }
    if (!value.is_object()) fail("its metadata is not an object");
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) fail("its metadata '" + key + "' is not text");
      header.metadata[key] = text.get<std::string>();
    }
  }
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin != at) fail("there is a gap or an overlap before tensor '" + entry.name + "'");
    at = entry.end;
  }
  if (at != file_bytes - header.data_begin) {
    fail("its tensors end at byte " + std::to_string(header.data_begin + at) + ", but the file has " +
         std::to_string(file_bytes));
  }
  return header;
}

}  // namespace zerosched::detail
