#pragma once

#include "base/owner_process.h"
#include "comm/mpi/group.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace zerosched::detail {

/// Drives the collectives of all groups of this process, under one lock.
///
/// Whoever waits for a collective drives them all; with MPI_THREAD_MULTIPLE a background thread does so too,
/// sleeps while nothing is in flight and looks for messages of other ranks 20 times a second. MPI_Finalize
/// ends the thread (through an attribute of MPI_COMM_SELF, which MPI deletes first of all).
class Progress {
 public:
  /// Lives for ever: nothing of it runs from a static destructor.
  static Progress& instance();

  /// Reads MPI's thread level and starts the thread, the first time.
  void start();
  bool has_thread() const { return has_thread_; }
  /// Whether the calling thread is that one.
  static bool on_thread() noexcept;

  void add(std::shared_ptr<MpiGroup> group);
  /// Has this rank leave the group, and lets it go once all ranks have: until then those that have not may still send
  /// something there.
  void release(const std::shared_ptr<MpiGroup>& group);
  /// Has this rank leave all groups but this one. They stay: whoever holds them finds out at the next call.
  void leave_all_but(const MpiGroup& last, const std::string& why);

  /// Something was queued or is to be told: starts it if the lock is free, else lets its holder do so.
  void notify(MpiGroup& group) noexcept;
  /// One round over all groups; returns whether anything moved.
  bool drive();
  /// What a call that only looks at a state does where no thread keeps that state fresh.
  void drive_if_inline() noexcept;
  /// Lives while a caller waits and drives, so that the thread leaves the core to it. Throws where this
  /// thread may not call MPI.
  class Waiter {
   public:
    Waiter();
    ~Waiter();
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
  };

  /// Gives up all groups with `cause`, tells the other ranks and allows `seconds` for it. Never throws.
  void abort_all(const Cause& cause, double seconds) noexcept;

  /// Whether MPI is not there any more; nor is it in a child that this process has forked.
  bool finalized() const { return finalized_.load(std::memory_order_acquire) || is_forked(); }
  bool is_forked() const { return !owner_.is_this(); }

 private:
  Progress() = default;
  void run();
  bool drive_locked(bool& busy);
  void shut_down();
  bool may_call_mpi() const;

  OwnerProcess owner_;
  std::mutex drive_mutex_;
  std::vector<std::shared_ptr<MpiGroup>> groups_, released_;  // under drive_mutex_

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool work_waits_ = false;  // under wake_mutex_
  bool stop_ = false;        // under wake_mutex_
  bool any_group_ = false;   // under wake_mutex_
  std::thread thread_;
  std::atomic<bool> started_{false}, finalized_{false};
  std::atomic<int> waiting_{0};
  bool has_thread_ = false;
  int thread_level_ = 0;
};

}  // namespace zerosched::detail
