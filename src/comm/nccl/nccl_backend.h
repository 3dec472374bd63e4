#pragma once

#include "base/owner_process.h"
#include "comm/member.h"
#include "comm/nccl/options.h"

#include <zerosched/communicator.h>

#include <exception>
#include <memory>
#include <optional>
#include <thread>

namespace zerosched::detail {

class NcclGroup;
class NcclWork;
struct Header;

class NcclCommunicator final : public Communicator, public Member {
 public:
  NcclCommunicator(std::shared_ptr<NcclGroup> group, int local_rank);

  /// Gives everything back in this order: collectives in flight end; windows of live tensors are
  /// deregistered; NCCL's communicator is finalised and destroyed; the watching thread ends; stream and
  /// events go with the last Work, memory with the last tensor. Waits for that as long as a collective may take, as
  /// the device may be far behind the host. After a failure, and when an exception unwinds, it waits a second: what is
  /// left then is the watching thread's, which goes on until the device has ended or is given up, or the process ends.
  ~NcclCommunicator() override;

  const char* backend() const override { return "nccl"; }
  std::shared_ptr<Communicator> duplicate() override;
  void abort(const std::string& message) noexcept override;
  std::string failure() const override;
  void set_owner(const std::string& owner) override;
  void leave(const std::string& why) noexcept override;
  void fail(const Cause& cause) noexcept override;
  Cause cause() const override;
  void abandon(const Cause& cause) noexcept override;

 private:
  at::Tensor do_allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective use) override;
  std::shared_ptr<Work> do_reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) override;
  std::shared_ptr<Work> do_all_gather(const at::Tensor& flat, CollectiveLabel label) override;
  std::shared_ptr<Work> do_all_reduce(const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) override;
  std::shared_ptr<Work> do_broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) override;
  std::shared_ptr<Work> do_barrier(CollectiveLabel label) override;

  /// Whether the host communicator is to carry the tensor; throws if it is on another GPU.
  bool on_host(const at::Tensor& tensor, Collective kind) const;

  const int exceptions_at_start_ = std::uncaught_exceptions();
  OwnerProcess owner_;
  std::shared_ptr<NcclGroup> group_;
  at::Tensor barrier_;  // one element, on the device
  std::thread watcher_;
};

/// nccl_communicator() with what tests change. Collective over `bootstrap`.
std::shared_ptr<Communicator> make_nccl_communicator(
    Communicator& bootstrap, std::optional<at::Device> device, const NcclOptions& options);

}  // namespace zerosched::detail
