#pragma once

#include "io/file.h"
#include "io/job_identity.h"

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace zerosched::detail {

inline constexpr const char* kLockName = ".zerosched.lock";

/// How long a lock waits, and for what.
struct LockTimes {
  std::chrono::milliseconds beat{2000};       ///< how often its owner touches a lock
  std::chrono::milliseconds silence{30000};   ///< after which one of another machine has ended
  std::chrono::milliseconds unwritten{5000};  ///< after which nobody will write any more whose lock it is
  std::chrono::milliseconds patience{300000};
  std::chrono::milliseconds until_notice{5000};
};

/// One process at a time changes a folder that checkpoints and exports are in. The lock is a file there, which says whose
/// it is, so that it works where flock does not (NFS, Lustre); readers need none.
///
/// A lock whose process has ended is taken over. On this machine that is known; of another machine's it is concluded when
/// its owner has not touched it for a while.
class FolderLock {
 public:
  /// Waits while another process has it, and calls `notice` once if that takes long. Throws after LockTimes::patience,
  /// naming the other, and if the folder cannot be written to.
  explicit FolderLock(const std::string& folder, const std::function<void(const std::string&)>& notice = {},
      const LockTimes& times = {});
  /// Gives it back.
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  /// Throws if another process has taken it over, because this one did not run for so long.
  void check_held() const;

 private:
  bool try_to_make();
  bool try_to_take_over(const std::string& text) const;
  void beat(std::chrono::milliseconds every);

  std::string folder_, path_;
  std::string token_;                  ///< what tells this lock from all others
  std::optional<Descriptor> touched_;  ///< its file, by which it is touched
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ended_ = false;  ///< under mutex_
  std::thread beating_;
};

/// Whether a file of this name in a locked folder is what a process left that was killed while it took over a lock.
bool is_left_of_lock(const std::string& file_name);

}  // namespace zerosched::detail
