#include "data_order.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randperm.h>

DataOrder::DataOrder(int64_t samples, int64_t batch, uint64_t seed)
    : batch_(batch),
      generator_(at::make_generator<at::CPUGeneratorImpl>(seed)),
      epoch_(at::randperm(samples, generator_, at::TensorOptions(at::kLong))) {}

at::Tensor DataOrder::next(int rank, int world_size) {
  const int64_t samples = epoch_.size(0);
  auto batch = epoch_.slice(0, position_, position_ + batch_);
  position_ += batch_;
  if (position_ >= samples) {  // the batch may end in the next epoch
    epoch_ = at::randperm(samples, generator_, at::TensorOptions(at::kLong));
    position_ -= samples;
    if (position_ > 0) batch = at::cat({batch, epoch_.slice(0, 0, position_)});
  }
  return batch.slice(0, batch_ * rank / world_size, batch_ * (rank + 1) / world_size);
}
