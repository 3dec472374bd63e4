#pragma once

#include "comm/failure/control_message.h"

#include <zerosched/communicator.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace zerosched::testing {

/// Rank 0 of a world whose other ranks are not there: of each it is said that it does what this one does, at the same
/// time and with the same numbers. For tensors in host memory; NCCL is bootstrapped over it.
class MirroredCommunicator : public Communicator, public detail::ControlRelay {
 public:
  explicit MirroredCommunicator(int size) : Communicator(0, size, 0) {}

  const char* backend() const override { return "mirrored"; }
  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<MirroredCommunicator>(size());
  }
  void abort(const std::string& message) noexcept override;
  std::string failure() const override;

  bool any_thread_may_call() const override { return true; }
  void relay(int, const detail::ControlMessage&) override {}
  std::vector<detail::ControlMessage> take_relayed() override { return {}; }

 protected:
  at::Tensor do_allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective use) override;
  /// But here as if they gave zeros: what ranks are told with the gradients is what rank 0 alone gives.
  std::shared_ptr<Work> do_reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) override;
  /// Every other rank's bytes end with its number in place of this rank's last four: what names a device must not
  /// name the same on two ranks.
  std::shared_ptr<Work> do_all_gather(const at::Tensor& flat, CollectiveLabel label) override;
  std::shared_ptr<Work> do_all_reduce(const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) override;
  std::shared_ptr<Work> do_broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) override;
  std::shared_ptr<Work> do_barrier(CollectiveLabel label) override;

 private:
  mutable std::mutex mutex_;
  std::string failure_;
};

}  // namespace zerosched::testing
