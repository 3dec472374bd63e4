#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

namespace zerosched::detail {

/// Why a communicator has given up; the first message wins. Duplicates of a communicator have failures of
/// their own, which are recorded in the one they descend from, so that whoever ends the job hears of them.
class Failure {
 public:
  explicit Failure(std::shared_ptr<Failure> ancestor = nullptr);

  /// Where a message comes from: found out here, or told by another rank, which ends the job itself. `parted`: ranks
  /// have left in the midst of collectives that none of them waits for, of which the family does not hear.
  enum class Origin { here, elsewhere, parted };

  /// Whether `message` is the first.
  bool set(const std::string& message, Origin origin = Origin::here);
  bool is_set() const { return set_.load(std::memory_order_acquire); }
  std::string message() const;

  /// The first failure of this communicator or of any that descends from it.
  std::string message_of_family() const;
  /// Of that failure; Origin::here if there is none.
  Origin origin_of_family() const;

 private:
  mutable std::mutex mutex_;
  std::atomic<bool> set_{false};
  std::string message_;
  std::string family_message_;
  Origin family_origin_ = Origin::here;
  std::shared_ptr<Failure> ancestor_;
};

}  // namespace zerosched::detail
