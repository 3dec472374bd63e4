#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>

/// Batches of sample numbers: every sample once per epoch, in a new order each time. The order depends on the seed alone,
/// and is the same on every rank.
class DataOrder {
 public:
  DataOrder(int64_t samples, int64_t batch, uint64_t seed);

  /// Rank `rank`'s part of the next batch, [n] int64. Every rank's parts together are the batch, whatever `world_size`.
  at::Tensor next(int rank, int world_size);

 private:
  int64_t batch_;
  int64_t position_ = 0;  // of the next sample in `epoch_`
  at::Generator generator_;
  at::Tensor epoch_;  // a permutation of the samples
};
