#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

/// Seconds per step and per phase of a step. The first two steps, which pay for allocations, do not count
/// if there are more.
class StepTimes {
 public:
  using Phases = std::map<std::string, double>;

  /// `ended`: when, in seconds since the first began.
  void add(double seconds, double ended, const Phases& phases) {
    if (++steps_ == 3) {
      seconds_.clear();
      phase_sums_.clear();
      began_ = ended_;
    }
    ended_ = ended;
    seconds_.push_back(seconds);
    for (const auto& [name, phase_seconds] : phases) phase_sums_[name] += phase_seconds;
  }

  /// 0, like the others, if there was no step.
  double min() const { return seconds_.empty() ? 0 : *std::min_element(seconds_.begin(), seconds_.end()); }

  double median() const {
    if (seconds_.empty()) return 0;
    auto sorted = seconds_;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }

  /// With all that is between steps, where what a step has left to be done may be waited for.
  double mean() const {
    return seconds_.empty() ? 0 : (ended_ - began_) / static_cast<double>(seconds_.size());
  }

  Phases mean_of_phases() const {
    Phases means = phase_sums_;
    for (auto& [name, seconds] : means) seconds /= static_cast<double>(seconds_.size());
    return means;
  }

 private:
  size_t steps_ = 0;
  double began_ = 0, ended_ = 0;
  std::vector<double> seconds_;
  Phases phase_sums_;
};
