#pragma once

#include "comm/failure/deadlines.h"

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

namespace zerosched::detail {

/// The ranks that have left a communicator: each says from which collective on it takes part in none, and why.
class Departures {
 public:
  struct Departure {
    int rank;
    int64_t sequence;  ///< of the first collective without this rank
    std::string why;   ///< a sentence that begins with the rank
  };

  void add(int rank, int64_t sequence, std::string why) {
    by_rank_.try_emplace(rank, Departure{rank, sequence, std::move(why)});
  }
  /// Whether the grace of a collective to which a rank will not come is over, which begins with the first such question.
  bool grace_is_over(std::chrono::steady_clock::time_point now) {
    if (!grace_began_) grace_began_ = now;
    return now - *grace_began_ > deadlines::kDeparture;
  }
  int count() const { return static_cast<int>(by_rank_.size()); }
  bool has_left(int rank) const { return by_rank_.count(rank) != 0; }

  /// What `rank` says if it takes no part in collective `sequence`; null if it may.
  const Departure* of(int rank, int64_t sequence) const {
    const auto found = by_rank_.find(rank);
    return found != by_rank_.end() && found->second.sequence <= sequence ? &found->second : nullptr;
  }
  /// What the lowest rank says that takes no part in collective `sequence`; null if all may.
  const Departure* missing_in(int64_t sequence) const {
    for (const auto& departure : by_rank_) {
      if (departure.second.sequence <= sequence) return &departure.second;
    }
    return nullptr;
  }

 private:
  std::map<int, Departure> by_rank_;
  std::optional<std::chrono::steady_clock::time_point> grace_began_;
};

}  // namespace zerosched::detail
