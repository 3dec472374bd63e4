#include "timeline/mirrored_communicator.h"

#include <ATen/ops/empty.h>

#include <cstring>

namespace zerosched::testing {
namespace {

class FinishedWork final : public Work {
 public:
  void wait() override {}
  bool done() const noexcept override { return true; }
};

std::shared_ptr<Work> finished() { return std::make_shared<FinishedWork>(); }

}  // namespace

void MirroredCommunicator::abort(const std::string& message) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.empty()) failure_ = message;
}

std::string MirroredCommunicator::failure() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

at::Tensor MirroredCommunicator::do_allocate(
    int64_t numel, at::ScalarType dtype, at::Device device, Collective) {
  return at::empty({numel}, at::TensorOptions().dtype(dtype).device(device));
}

std::shared_ptr<Work> MirroredCommunicator::do_reduce_scatter(
    const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel) {
  shard_out.copy_(flat.narrow(0, 0, shard_out.numel()));
  return finished();
}

std::shared_ptr<Work> MirroredCommunicator::do_all_gather(const at::Tensor& flat, CollectiveLabel) {
  auto* bytes = static_cast<char*>(flat.mutable_data_ptr());
  const size_t slice = flat.nbytes() / static_cast<size_t>(size());
  for (int rank = 1; rank < size(); ++rank) {
    char* theirs = bytes + static_cast<size_t>(rank) * slice;
    std::memcpy(theirs, bytes, slice);
    if (slice >= sizeof(rank)) std::memcpy(theirs + slice - sizeof(rank), &rank, sizeof(rank));
  }
  return finished();
}

std::shared_ptr<Work> MirroredCommunicator::do_all_reduce(
    const at::Tensor& tensor, ReduceOp op, CollectiveLabel) {
  if (op == ReduceOp::sum) tensor.mul_(size());
  return finished();
}

std::shared_ptr<Work> MirroredCommunicator::do_broadcast(const at::Tensor&, int, CollectiveLabel) {
  return finished();
}

std::shared_ptr<Work> MirroredCommunicator::do_barrier(CollectiveLabel) { return finished(); }

}  // namespace zerosched::testing
