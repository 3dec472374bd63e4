#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

// The safetensors format: 8 bytes of length, a JSON header, then the tensors' bytes without gaps.
namespace zerosched::detail {

struct SafetensorsEntry {
  std::string name;
  c10::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  ///< bytes, from the start of the data

  uint64_t byte_count() const { return end - begin; }
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  ///< bytes, from the start of the file
};

/// "F32", "BF16", ... Throws std::runtime_error for types that the format has no name for.
const std::string& safetensors_name(c10::ScalarType dtype);
std::optional<c10::ScalarType> safetensors_dtype(const std::string& name);

/// Places `entries` one after the other, in the order given; their begin and end are filled in.
/// Returns the length, the header and its padding: what the file starts with.
std::string make_safetensors_header(
    std::vector<SafetensorsEntry>& entries, const std::map<std::string, std::string>& metadata);

/// How many bytes of a file parse_safetensors_header() needs, from its first 8.
/// Throws std::runtime_error if the file cannot be so long.
uint64_t safetensors_header_bytes(const char* first_8, uint64_t file_bytes);

/// Checks everything: JSON, names, dtypes, sizes, that the data has neither gaps nor overlaps and fills the
/// file. Throws std::runtime_error that says what is wrong.
SafetensorsHeader parse_safetensors_header(const std::string& bytes, uint64_t file_bytes);

}  // namespace zerosched::detail
