#pragma once

#include <string>

namespace zerosched::detail {

/// What the checkpoints of one training have in common: a random name, drawn at the first save, that an optimizer which
/// loads one of them takes over. So the checkpoints of another optimizer beside them are known to be another's.
class CheckpointSeries {
 public:
  CheckpointSeries() = default;
  ~CheckpointSeries();
  CheckpointSeries(const CheckpointSeries&) = delete;
  CheckpointSeries& operator=(const CheckpointSeries&) = delete;

  /// 16 hexadecimal digits.
  const std::string& id();
  /// From a checkpoint; empty: it has none, and the next save draws one.
  void take_over(const std::string& id);

  /// Whether an optimizer of this process has this series.
  static bool lives(const std::string& id);

 private:
  void enter(int change) const;

  std::string id_;
};

}  // namespace zerosched::detail
