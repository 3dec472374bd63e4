#pragma once

#include "comm/mpi/shared_mapping.h"

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace zerosched::detail {

/// What a rank has of the others of its host through memory that all of them see: a board on which each says how far
/// it is, and windows, allocations in which each has a part that the others may read.
class LocalRanks : public std::enable_shared_from_this<LocalRanks> {
 public:
  /// What a rank says of one collective.
  enum class Sign { may_be_read, has_read };

  /// Of a board for `count` ranks, of which this one has `position`.
  static int64_t board_bytes(int count);
  LocalRanks(std::shared_ptr<SharedMapping> board, int position, int count);

  int position() const { return position_; }
  int count() const { return count_; }

  /// Of collective `sequence`. What a rank has written before it signs is seen by who finds the sign.
  void sign(Sign sign, int64_t sequence);
  bool has_signed(int position, Sign sign, int64_t sequence) const;
  bool all_have_signed(Sign sign, int64_t sequence) const;

  /// Bytes between the parts of two ranks in a window for tensors of `byte_count` bytes.
  static int64_t stride_of(int64_t byte_count);
  /// This rank's part of a window that all ranks of the host have mapped, as a tensor. Gives its pages back, and lets the
  /// mapping go, with the last tensor.
  at::Tensor tensor_in(
      std::shared_ptr<SharedMapping> window, int64_t stride, int64_t numel, at::ScalarType dtype);
  /// Bytes from this rank's part to that of the next position in the window that holds all of `tensor`; 0: none does.
  int64_t stride_at(const at::Tensor& tensor) const;

 private:
  struct Window {
    std::shared_ptr<SharedMapping> mapping;
    int64_t stride = 0;
  };
  std::atomic<int64_t>& field(int position, Sign sign, int64_t sequence) const;
  void forget(const char* part) noexcept;

  std::shared_ptr<SharedMapping> board_;
  int position_, count_;
  mutable std::mutex mutex_;
  std::map<const char*, Window> windows_;  // under mutex_, by the first byte of this rank's part
};

}  // namespace zerosched::detail
