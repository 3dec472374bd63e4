#pragma once

#include "comm/member.h"
#include "comm/mpi/group.h"
#include "comm/mpi/mpi_options.h"
#include "comm/mpi/share_memory.h"

#include <zerosched/communicator.h>

#include <mpi.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace zerosched::detail {

class MpiCommunicator final : public Communicator, public ControlRelay, public Member {
 public:
  /// Takes over `group`.
  MpiCommunicator(std::shared_ptr<MpiGroup> group, int local_rank);

  /// Leaves. The MPI communicator is given back once every rank has left and its collectives have ended, without anyone's
  /// waiting for it; one that failed never is, because collectives are still pending on it. In a child that fork() has
  /// made nothing happens.
  ~MpiCommunicator() override;

  const char* backend() const override { return "mpi"; }
  int host_count() const override { return group_->hosts().count(); }
  std::shared_ptr<Communicator> duplicate() override;
  void abort(const std::string& message) noexcept override;
  std::string failure() const override;

  /// The first failure of this communicator or of a duplicate of it, also one that is gone.
  std::string family_failure() const { return group_->failure_state()->cause_of_family().text; }
  /// Outlives the communicator.
  const std::shared_ptr<Failure>& failure_state() const { return group_->failure_state(); }

  void set_owner(const std::string& owner) override { group_->set_owner(owner); }
  void leave(const std::string& why) noexcept override;
  void fail(const Cause& cause) noexcept override;
  Cause cause() const override;
  void abandon(const Cause& cause) noexcept override;
  /// This rank leaves all other communicators, of which MPI_Finalize would not let any go on.
  void leave_others(const std::string& why);

  bool any_thread_may_call() const override;
  void relay(int peer, const ControlMessage& message) override;
  std::vector<ControlMessage> take_relayed() override;

  /// Waits for all ranks as long as all of them are alive, whatever the timeout.
  void patient_barrier(CollectiveLabel label);

 private:
  at::Tensor do_allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective use) override;
  std::shared_ptr<Work> do_reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) override;
  std::shared_ptr<Work> do_all_gather(const at::Tensor& flat, CollectiveLabel label) override;
  std::shared_ptr<Work> do_all_reduce(const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) override;
  std::shared_ptr<Work> do_broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) override;
  std::shared_ptr<Work> do_barrier(CollectiveLabel label) override;

  SharingTalk talk();
  at::Tensor allocate_on_host(int64_t numel, at::ScalarType dtype);
  int64_t window_stride(const at::Tensor& flat, Header& header) const;
  template <typename Kind, typename... More>
  std::shared_ptr<Work> launch(const Header& header, std::vector<StagedTensor> tensors, More... more);
  std::shared_ptr<Work> enqueue(std::shared_ptr<Operation> operation);
  std::shared_ptr<StagingArea> staging_area(int device);

  std::shared_ptr<MpiGroup> group_;
  std::mutex staging_mutex_;
  std::map<int, std::shared_ptr<StagingArea>> staging_areas_;  // under staging_mutex_, by device
};

/// mpi_communicator() with what tests change. Collective over `parent`.
std::shared_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options);

/// Every MPI communicator of this process gives up with `cause` and tells its other ranks, which get
/// `seconds` to hear it.
void abort_mpi_communicators(const Cause& cause, double seconds) noexcept;

}  // namespace zerosched::detail
