#include "io/tensor_file.h"

#include "io/checksum.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

namespace zerosched::detail {

namespace {

constexpr auto kChunkBytes = static_cast<size_t>(kPieceBytes);

SafetensorsHeader read_header(const File& file) {
  const uint64_t file_bytes = file.size();
  char first_8[8] = {};
  file.read(first_8, sizeof(first_8), 0);
  std::string bytes(safetensors_header_bytes(first_8, file_bytes), '\0');
  file.read(bytes.data(), bytes.size(), 0);
  return parse_safetensors_header(bytes, file_bytes);
}

}  // namespace

ManifestFile write_tensors(const std::string& path, const NamedTensors& tensors, Executor& executor) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  const std::string header = make_safetensors_header(entries, {});
  ManifestFile written;
  written.byte_count = header.size() + (entries.empty() ? 0 : entries.back().end);
  NewFile file(path, written.byte_count);
  file.write(header.data(), header.size(), 0);
  for (size_t i = 0; i < tensors.size(); ++i) {
    Checksum checksum;
    uint64_t at = header.size() + entries[i].begin;
    // In pieces, so that what is hashed is still in the caches when it is written.
    executor.read(tensors[i].second.detach(), [&](const std::byte* bytes, int64_t count) {
      checksum.add(bytes, static_cast<size_t>(count));
      file.write(bytes, static_cast<size_t>(count), at);
      at += static_cast<uint64_t>(count);
    });
    written.checksums[tensors[i].first] = checksum.text();
  }
  file.finish();
  return written;
}

TensorFile::TensorFile(const std::string& path) : file_(File::open(path)) {
  try {
    header_ = read_header(file_);
  } catch (const std::runtime_error& error) {
    const std::string message = error.what();
    if (message.rfind(path, 0) == 0) throw;  // of the file itself, which names its path
    fail(message);
  }
  for (size_t i = 0; i < header_.entries.size(); ++i) index_[header_.entries[i].name] = i;
}

void TensorFile::fail(const std::string& what) const { throw std::runtime_error(path() + ": " + what); }

void TensorFile::check_byte_count(uint64_t expected) const {
  if (file_.size() == expected) return;
  fail("has " + std::to_string(file_.size()) + " bytes instead of " + std::to_string(expected));
}

const SafetensorsEntry& TensorFile::entry(const std::string& tensor) const {
  const auto found = index_.find(tensor);
  if (found == index_.end()) fail("has no tensor '" + tensor + "'");
  return header_.entries[found->second];
}

void TensorFile::verify(const std::string& tensor, const std::string& checksum) const {
  const SafetensorsEntry& entry = this->entry(tensor);
  const auto chunk = std::make_unique<char[]>(kChunkBytes);
  Checksum found;
  for (uint64_t done = 0; done < entry.byte_count(); done += kChunkBytes) {
    const size_t count = static_cast<size_t>(std::min<uint64_t>(kChunkBytes, entry.byte_count() - done));
    file_.read(chunk.get(), count, header_.data_begin + entry.begin + done);
    found.add(chunk.get(), count);
  }
  if (found.text() != checksum) {
    fail("tensor '" + tensor + "' is damaged: its checksum is " + found.text() + " instead of " + checksum +
         ". Take an older checkpoint, or a copy of this one");
  }
}

void TensorFile::read(
    const std::string& tensor, int64_t begin, const at::Tensor& to, Executor& executor) const {
  const SafetensorsEntry& entry = this->entry(tensor);
  const auto element_bytes = static_cast<uint64_t>(c10::elementSize(entry.dtype));
  if (entry.dtype != to.scalar_type() ||
      (static_cast<uint64_t>(begin) + static_cast<uint64_t>(to.numel())) * element_bytes >
          entry.byte_count()) {
    fail("tensor '" + tensor + "' is " + c10::toString(entry.dtype) + " of " +
         std::to_string(entry.byte_count() / element_bytes) + " elements; expected " +
         c10::toString(to.scalar_type()) + " of " + std::to_string(begin + to.numel()) + " or more");
  }
  uint64_t at = header_.data_begin + entry.begin + static_cast<uint64_t>(begin) * element_bytes;
  executor.write(to, [&](std::byte* bytes, int64_t count) {
    file_.read(bytes, static_cast<size_t>(count), at);
    at += static_cast<uint64_t>(count);
  });
}

at::Tensor TensorFile::read(const std::string& tensor) const {
  const SafetensorsEntry& entry = this->entry(tensor);
  at::Tensor whole = at::empty(entry.shape, at::TensorOptions().dtype(entry.dtype));
  HostExecutor host;
  read(tensor, 0, whole.view({whole.numel()}), host);
  return whole;
}

}  // namespace zerosched::detail
