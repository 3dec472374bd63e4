#pragma once

#include "engine/executor.h"
#include "io/file.h"
#include "io/manifest.h"
#include "io/safetensors.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Writes `tensors`, in this order, to a new safetensors file at `path`, and syncs it. Tensors that are
/// contiguous in host memory are not copied, others one at a time.
ManifestFile write_tensors(const std::string& path, const NamedTensors& tensors, Executor& executor);

/// A safetensors file that is read in parts. Errors are std::runtime_error and name the file.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  /// Throws unless the file has so many bytes.
  void check_byte_count(uint64_t expected) const;
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  /// Throws if there is no such tensor.
  const SafetensorsEntry& entry(const std::string& tensor) const;
  /// Throws unless the tensor's bytes have this checksum, see Checksum.
  void verify(const std::string& tensor, const std::string& checksum) const;

  /// Elements [begin, begin + to.numel()) of a tensor into `to`: flat, contiguous, of the tensor's dtype, on
  /// the executor's device.
  void read(const std::string& tensor, int64_t begin, const at::Tensor& to, Executor& executor) const;
  /// A whole tensor, on the CPU.
  at::Tensor read(const std::string& tensor) const;

 private:
  [[noreturn]] void fail(const std::string& what) const;

  File file_;
  SafetensorsHeader header_;
  std::map<std::string, size_t> index_;  ///< of entries, by name
};

}  // namespace zerosched::detail
