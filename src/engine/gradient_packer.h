#pragma once

#include "engine/executor.h"
#include "layout/layout.h"

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace zerosched::detail {

class DeviceKernels;

/// A bucket's flat buffer on its way to other ranks: world_size slices, each of gradients, flags (layout.h), and in one
/// bucket a report.
struct OutgoingBucket {
  int64_t bucket = 0;
  at::Tensor flat;  ///< undefined as long as the bucket has none
  int64_t slice_numel = 0;
  double weight = 1;  ///< what gradients are multiplied with; 0: they do not count, whatever they are
};

/// Knows what lies where in a bucket's buffer, and puts it there: gradients of a bucket's slots in any order, everything
/// else once they are complete. Buffers are reused by other buckets, so whatever no gradient was put to is zeroed.
class GradientPacker {
 public:
  virtual ~GradientPacker() = default;

  /// Whether put() writes to the bucket's buffer.
  virtual bool needs_buffer() const = 0;
  /// The gradient of a slot: flat, in the parameter's memory order, of the bucket's reduce_dtype or one that converts to
  /// it (kernels::copy_gradient). Whether it is finite, as far as the host sees.
  virtual bool put(const OutgoingBucket& to, int64_t slot, const at::Tensor& gradient) = 0;
  /// All that will come have come. What is queued from now on in their streams does not hold up finish().
  virtual void seal(int64_t bucket) = 0;
  /// The rest of the buffer, after which it is what is sent; `report`: what slices end with, in host memory, if they are
  /// longer than gradients and flags. In the stream that Executor::beside() makes current.
  virtual void finish(const OutgoingBucket& to, const std::byte* report) = 0;
  /// From a hook: backward needs the memory of gradients that finish() was called for, but the last bucket's.
  virtual void give_back() = 0;
  /// The caller's stream comes after the bucket's reduction, so after finish() too.
  virtual void reduced(int64_t bucket) = 0;
  /// Forgets what was put.
  virtual void reset() = 0;

 protected:
  GradientPacker() = default;
  GradientPacker(const GradientPacker&) = delete;
  GradientPacker& operator=(const GradientPacker&) = delete;
};

/// Gradients in host memory: copied as they come. `rank`: this one's, for the flags that name it.
std::unique_ptr<GradientPacker> make_host_packer(const Layout& layout, int64_t rank);

/// On a device gradients stay where they are, held, until the bucket is finished: one kernel takes them all, beside the
/// stream that backward runs in.
///
/// Their memory goes back to the allocator, which may hand it out at once, when the streams that they came in wait for
/// that kernel. In backward they are made to once the next bucket is finished, so the gradients of two buckets are alive
/// at once however far the host is ahead of the device.
std::unique_ptr<GradientPacker> make_device_packer(
    const Layout& layout, DeviceExecutor& executor, DeviceKernels& kernels);

}  // namespace zerosched::detail
