#pragma once

#include "engine/executor.h"
#include "layout/layout.h"

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace zerosched::detail {

/// The trainable parameters of a model, living in one flat buffer per bucket.
///
/// Each parameter keeps its identity, sizes, strides and hooks; its data becomes a storage of its own that
/// aliases its byte range of the buffer and keeps the buffer alive, so torch::save writes the parameter and
/// not the bucket.
class FlatParameters {
 public:
  /// Collective (allocates from the communicator). Copies the parameters' values. `layout` and `executor`
  /// must outlive this.
  FlatParameters(std::vector<at::Tensor> parameters, std::vector<std::string> names, const Layout& layout,
      Communicator& communicator, Executor& executor);

  /// The whole bucket: world_size slices, in the parameters' dtype.
  const at::Tensor& buffer(int64_t bucket) const { return buffers_[static_cast<size_t>(bucket)]; }
  /// What rank `rank` owns of it.
  at::Tensor slice(int64_t bucket, int64_t rank) const;

  /// To be called after every write to the buffers: bumps the parameters' autograd version, so that a graph
  /// recorded before fails as after any in-place write, and remembers it as ours.
  void mark_written();

  /// Which parameter somebody else has replaced or written since, and how, as far as its storage and its version
  /// tell; empty if none. A write may have left the bits as they were.
  std::string changed() const;
  /// The same of parameters that were given other storage.
  std::string replaced() const;
  /// The name of a parameter of the bucket that was written since, in its place in the buffer; empty if none.
  std::string written(int64_t bucket) const;
  /// What to tell a user who has written parameter `parameter`.
  std::string text_of_write(int64_t parameter) const;
  /// Takes the writes since mark_written() for none: they left the bits as they were.
  void accept();

  /// What keeps the parameters' present values from being taken over again; empty if nothing.
  std::string why_not_adoptable() const;
  /// Copies the parameters' present values into the buffers and aliases them again.
  void adopt();

  /// Gives every parameter that is still ours ordinary storage with its present values.
  void release() noexcept;

 private:
  void adopt(const Bucket& bucket);
  at::Tensor alias(int64_t parameter) const;
  std::string text(size_t parameter, const char* what) const;

  std::vector<at::Tensor> parameters_;
  std::vector<std::string> names_;
  const Layout& layout_;
  Executor& executor_;
  std::vector<at::Tensor> buffers_;
  struct Expected {
    std::vector<int64_t> sizes, strides;
    at::TensorOptions options;
    const void* data = nullptr;
    int64_t version = 0;
  };
  std::vector<Expected> expected_;
};

}  // namespace zerosched::detail
