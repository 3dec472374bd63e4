#pragma once

#include "comm/failure/cause.h"

#include <atomic>
#include <memory>
#include <mutex>

namespace zerosched::detail {

/// Why a communicator has given up; the first cause wins. Duplicates of a communicator have failures of
/// their own, which are recorded in the one they descend from, so that whoever ends the job hears of them.
class Failure {
 public:
  explicit Failure(std::shared_ptr<Failure> ancestor = nullptr);

  /// Where a message comes from: found out here, or told by another rank, which ends the job itself. `parted`: ranks
  /// have left in the midst of collectives that none of them waits for, of which the family does not hear.
  enum class Origin { here, elsewhere, parted };

  /// Whether `cause` is the first.
  bool set(Cause cause, Origin origin = Origin::here);
  bool is_set() const { return set_.load(std::memory_order_acquire); }
  /// Without text if there is none.
  Cause cause() const;

  /// The first failure of this communicator or of any that descends from it.
  Cause cause_of_family() const;
  /// Of that failure; Origin::here if there is none.
  Origin origin_of_family() const;

 private:
  mutable std::mutex mutex_;  ///< guards the causes and the origin
  std::atomic<bool> set_{false};
  Cause cause_;
  Cause family_cause_;
  Origin family_origin_ = Origin::here;
  std::shared_ptr<Failure> ancestor_;
};

}  // namespace zerosched::detail
