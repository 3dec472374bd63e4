#pragma once

#include "comm/failure/departures.h"
#include "comm/failure/failure.h"
#include "comm/failure/history.h"
#include "comm/failure/investigation.h"
#include "comm/mpi/control_channel.h"
#include "comm/mpi/hosts.h"
#include "comm/mpi/local_ranks.h"
#include "comm/mpi/mpi_options.h"
#include "comm/mpi/operation.h"
#include "comm/mpi/scratch_pool.h"

#include <mpi.h>

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace zerosched::detail {

/// The state behind one MPI communicator: its queue of collectives, those in flight, and what is needed to
/// give up. Calls marked "driver" are made under the progress lock (see Progress); the others by anyone.
class MpiGroup final : public Investigated, public std::enable_shared_from_this<MpiGroup> {
 public:
  /// Takes over `comm`, a communicator of the library's own. `id` is the same on every rank and differs from
  /// that of any other group of the job.
  MpiGroup(MPI_Comm comm, uint64_t id, MpiOptions options, Hosts hosts,
      std::shared_ptr<LocalRanks> local_ranks, std::shared_ptr<Failure> failure);
  ~MpiGroup() override;
  MpiGroup(const MpiGroup&) = delete;
  MpiGroup& operator=(const MpiGroup&) = delete;

  std::string name() const override;
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  double timeout_seconds() const override { return options_.timeout_seconds; }
  uint64_t id() const { return id_; }
  MPI_Comm comm() const { return comm_; }
  const MpiOptions& options() const { return options_; }
  const Hosts& hosts() const { return hosts_; }
  /// Null: ranks do not share memory.
  const std::shared_ptr<LocalRanks>& local_ranks() const { return local_ranks_; }
  /// Of messages that carry the data of reduce-scatters and all-gathers.
  int64_t message_bytes() const { return options_.message_bytes; }
  device::Runtime& runtime() const {
    return options_.runtime != nullptr ? *options_.runtime : device::cuda();
  }
  const std::shared_ptr<Failure>& failure_state() const { return failure_; }

  /// Throws once this rank has left.
  void launch(const std::shared_ptr<Operation>& operation);

  void set_owner(const std::string& owner);
  /// Null if nobody has said who it is.
  std::shared_ptr<const std::string> owner() const;
  /// Launches no more, and lets the next drive tell the other ranks why; the first reason counts. An empty one is made
  /// one here.
  void leave(std::string why);
  bool has_left() const override { return has_left_.load(std::memory_order_acquire); }

  bool failed() const override { return failure_->is_set(); }
  Cause cause() const { return failure_->cause(); }
  /// Why nothing works in a process that is not the one which made it.
  Cause cause_in_fork() const;
  /// Gives up, and lets the next drive tell the other ranks.
  void fail(const Cause& cause) override;
  /// Gives up without telling: the cause came from another rank, or MPI is gone.
  void fail_quietly(Cause cause, Failure::Origin origin) { failure_->set(std::move(cause), origin); }

  /// Messages for the communicator that is bootstrapped over this one.
  void relay(int peer, ControlMessage message);
  std::vector<ControlMessage> take_relayed();

  /// A thread begins, or ends, to wait for a collective of this group.
  void count_waiter(int change) { waiters_ += change; }

  /// Whether collective `sequence` and all before it have ended.
  bool ended_up_to(int64_t sequence) const {
    return sequence < first_active_.load(std::memory_order_acquire);
  }

  // Driver.
  struct Polled {
    bool moved = false;
    bool busy = false;  ///< has something in flight
  };
  /// Starts what is queued, in order, and nothing else.
  void start_queued();
  Polled poll();
  /// Whether nothing of it is in flight any more, notes and what is relayed included.
  bool idle();
  /// Whether every rank has left and none has anything in flight to another: nobody will send anything here any more.
  bool is_over() { return has_told_departure_ && all_have_left() && idle(); }
  bool is_sending() const { return must_tell_ || sending_; }
  bool answers_when_busy() const override;
  const Departures& departures() const override { return departures_; }
  bool has_ended(int64_t sequence) const override { return ended_up_to(sequence); }
  ControlMessage::Position position(int64_t sequence) const override { return history_.position(sequence); }
  void send(int peer, const ControlMessage& message) override { control_.send(peer, message); }
  /// MPI is about to be finalised: gives up, without MPI.
  void close();
  /// Frees the MPI communicator. A group that failed never does: its requests are still pending in MPI.
  void free();

  // Driver: whether an older operation than the one that is being polled has not started its data.
  bool older_has_not_started() const { return older_has_not_started_; }
  void set_older_has_not_started() { older_has_not_started_ = true; }

  // Driver: for what reduces.
  ScratchPool& scratch() { return *scratch_; }
  /// Of message_bytes().
  char* take_buffer();
  void return_buffer(char* buffer) { free_buffers_.push_back(buffer); }
  /// Whether nothing older still has receives to post.
  bool take_receive_turn();
  void pass_receive_turn() { receive_turn_ = true; }

 private:
  /// What went wrong on this rank, in `collective` if in any.
  Cause own_cause(const std::string& what, const Header* collective = nullptr) const;
  bool poll_operations(Clock::time_point now);
  void look_into(Operation& operation, Clock::time_point now);
  bool poll_control(Clock::time_point now);
  void pass_on_relayed();
  void bury();
  void tell_if_due();
  void tell_departure();
  void look_for_departed(Clock::time_point now);

  MPI_Comm comm_;
  uint64_t id_;
  MpiOptions options_;
  Hosts hosts_;
  std::shared_ptr<LocalRanks> local_ranks_;
  int rank_ = 0, size_ = 1;
  std::shared_ptr<Failure> failure_;
  std::atomic<bool> must_tell_{false};

  mutable std::mutex queue_mutex_;
  std::deque<std::shared_ptr<Operation>> queue_;
  int64_t next_sequence_ = 0;                 // under queue_mutex_
  std::shared_ptr<const std::string> owner_;  // under queue_mutex_
  std::string why_left_;                      // under queue_mutex_
  std::atomic<bool> has_left_{false};
  std::atomic<int> waiters_{0};
  std::deque<ControlMessage> relayed_out_;  // under queue_mutex_; `source` is the receiver here
  std::vector<ControlMessage> relayed_in_;  // under queue_mutex_

  std::deque<std::shared_ptr<Operation>> active_;  // in the order of their numbers
  std::atomic<int64_t> first_active_{0};           // number of the oldest collective that has not ended
  History history_;
  ControlChannel control_;
  Investigation investigation_;
  Departures departures_;
  bool has_told_departure_ = false;
  Clock::time_point last_control_{};
  bool sending_ = false;

  std::shared_ptr<ScratchPool> scratch_ = std::make_shared<ScratchPool>();
  std::vector<std::unique_ptr<char[]>> buffers_;
  std::vector<char*> free_buffers_;
  bool receive_turn_ = true;
  bool older_has_not_started_ = false;
};

}  // namespace zerosched::detail
