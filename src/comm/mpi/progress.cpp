#include "comm/mpi/progress.h"

#include "base/backoff.h"
#include "base/check.h"
#include "base/keeps_denormals.h"
#include "base/message_of.h"
#include "base/start_thread.h"
#include "comm/failure/deadlines.h"
#include "comm/mpi/check.h"

#include <algorithm>
#include <utility>

#include <pthread.h>
#include <sys/prctl.h>

namespace zerosched::detail {

namespace {

constexpr auto kIdleWake = std::chrono::milliseconds(50);

thread_local bool is_progress_thread = false;

}  // namespace

bool Progress::on_thread() noexcept { return is_progress_thread; }

Progress& Progress::instance() {
  static auto* progress = new Progress;
  return *progress;
}

void Progress::start() {
  const std::lock_guard<std::mutex> lock(drive_mutex_);
  if (started_) return;
  ZEROSCHED_MPI_CALL(MPI_Query_thread, &thread_level_);
  int key = MPI_KEYVAL_INVALID;
  const auto at_finalize = [](MPI_Comm, int, void*, void*) {
    Progress::instance().shut_down();
    return MPI_SUCCESS;
  };
  ZEROSCHED_MPI_CALL(MPI_Comm_create_keyval, MPI_COMM_NULL_COPY_FN, +at_finalize, &key, nullptr);
  ZEROSCHED_MPI_CALL(MPI_Comm_set_attr, MPI_COMM_SELF, key, nullptr);
  has_thread_ = thread_level_ == MPI_THREAD_MULTIPLE;
  if (has_thread_) thread_ = start_thread([this] { run(); });
  started_ = true;
}

void Progress::add(std::shared_ptr<MpiGroup> group) {
  {
    const std::lock_guard<std::mutex> lock(drive_mutex_);
    groups_.push_back(std::move(group));
  }
  const std::lock_guard<std::mutex> lock(wake_mutex_);
  any_group_ = true;
  wake_.notify_one();
}

void Progress::release(const std::shared_ptr<MpiGroup>& group) {
  if (finalized()) return;
  group->leave({});
  {
    const std::lock_guard<std::mutex> lock(drive_mutex_);
    // One that failed stays: its note may still have to go out, and others may ask what happened.
    if (group->failed() || finalized()) return;
    released_.push_back(group);
  }
  notify(*group);
}

void Progress::leave_all_but(const MpiGroup& last, const std::string& why) {
  const std::lock_guard<std::mutex> lock(drive_mutex_);
  for (const auto& group : groups_) {
    if (group.get() != &last) group->leave(why);
  }
  bool busy = false;
  if (may_call_mpi()) drive_locked(busy);
}

void Progress::notify(MpiGroup& group) noexcept {
  if (may_call_mpi()) {
    const std::unique_lock<std::mutex> lock(drive_mutex_, std::try_to_lock);
    if (lock.owns_lock() && !finalized()) {
      const KeepsDenormals keeps_denormals;
      try {
        group.failed() || group.has_left() ? static_cast<void>(group.poll()) : group.start_queued();
      } catch (const std::exception& error) {
        group.fail({"mpi: rank " + std::to_string(group.rank()) + ": " + message_of(error), group.rank()});
      }
    }
  }
  if (!has_thread_) return;
  const std::lock_guard<std::mutex> lock(wake_mutex_);
  work_waits_ = true;
  wake_.notify_one();
}

bool Progress::drive() {
  bool busy = false;
  const std::lock_guard<std::mutex> lock(drive_mutex_);
  return !finalized() && drive_locked(busy);
}

void Progress::drive_if_inline() noexcept {
  if (has_thread_ || !started_ || !may_call_mpi()) return;
  bool busy = false;
  const std::unique_lock<std::mutex> lock(drive_mutex_, std::try_to_lock);
  if (lock.owns_lock() && !finalized()) drive_locked(busy);
}

Progress::Waiter::Waiter() {
  ZEROSCHED_CHECK(instance().may_call_mpi(),
      "mpi: MPI was initialised below MPI_THREAD_SERIALIZED, so only the thread that initialised it can wait "
      "for "
      "a collective; ask MPI_Init_thread for MPI_THREAD_MULTIPLE");
  ++instance().waiting_;
}

Progress::Waiter::~Waiter() { --instance().waiting_; }

bool Progress::may_call_mpi() const {
  if (finalized()) return false;
  if (thread_level_ >= MPI_THREAD_SERIALIZED) return true;
  int is_main = 0;
  MPI_Is_thread_main(&is_main);
  return is_main != 0;
}

bool Progress::drive_locked(bool& busy) {
  const KeepsDenormals keeps_denormals;
  bool moved = false;
  for (const auto& group : groups_) {
    const auto polled = group->poll();
    moved = moved || polled.moved;
    busy = busy || polled.busy;
  }
  for (auto it = released_.begin(); it != released_.end();) {
    if (!(*it)->is_over() && !(*it)->failed()) {
      ++it;
      continue;
    }
    if (!(*it)->failed()) {
      groups_.erase(std::remove(groups_.begin(), groups_.end(), *it), groups_.end());
      (*it)->free();
    }
    it = released_.erase(it);
  }
  return moved;
}

void Progress::run() {
  is_progress_thread = true;
  pthread_setname_np(pthread_self(), "zerosched-mpi");
  // The kernel may round this thread's sleeps up by so much; its default of 50 us is longer than they are.
  prctl(PR_SET_TIMERSLACK, 1000UL);
  Backoff backoff(Backoff::Kind::background);
  for (;;) {
    bool busy = false;
    bool moved = false;
    {
      // A lock that is taken means that a caller drives.
      const std::unique_lock<std::mutex> lock(drive_mutex_, std::try_to_lock);
      if (lock.owns_lock()) {
        moved = drive_locked(busy);
      } else {
        busy = true;
      }
    }
    std::unique_lock<std::mutex> lock(wake_mutex_);
    if (stop_) return;
    if (busy) {
      work_waits_ = false;
      lock.unlock();
      if (waiting_ > 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      } else {
        backoff.pause(moved);
      }
      continue;
    }
    const auto due = [this] { return work_waits_ || stop_; };
    if (any_group_) {
      wake_.wait_for(lock, kIdleWake, due);
    } else {
      wake_.wait(lock, [this] { return any_group_ || stop_; });
    }
    work_waits_ = false;
    backoff = Backoff(Backoff::Kind::background);
  }
}

void Progress::shut_down() {
  {
    const std::lock_guard<std::mutex> lock(wake_mutex_);
    stop_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  const std::lock_guard<std::mutex> lock(drive_mutex_);
  for (const auto& group : groups_) {
    group->leave("rank " + std::to_string(group->rank()) +
                 " has called MPI_Finalize; every rank must call the same collectives before");
  }
  const auto all_told = [this] {
    bool busy = false;
    drive_locked(busy);
    return std::all_of(groups_.begin(), groups_.end(),
        [](const auto& group) { return group->failed() ? !group->is_sending() : group->is_over(); });
  };
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(deadlines::kLastWords);
  while (!all_told() && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  for (const auto& group : groups_) group->close();
  groups_.clear();
  released_.clear();
  finalized_.store(true, std::memory_order_release);
}

void Progress::abort_all(const Cause& cause, double seconds) noexcept {
  using std::chrono::steady_clock;
  const auto end = steady_clock::now() + std::chrono::duration<double>(seconds);
  bool told = false;
  while (steady_clock::now() < end) {
    if (!finalized() && may_call_mpi()) {
      // The holder of the lock may be stuck or be this very thread, in a terminate handler.
      const std::unique_lock<std::mutex> lock(drive_mutex_, std::try_to_lock);
      if (lock.owns_lock()) {
        if (!told) {
          for (const auto& group : groups_) {
            if (!group->has_left()) group->fail(cause);
          }
          told = true;
        }
        bool busy = false;
        drive_locked(busy);
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace zerosched::detail
