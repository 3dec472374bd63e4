#pragma once

#include <functional>

namespace zerosched::detail {

/// What has become of a step. A GPU may not have come so far when the host asks.
struct StepOutcome {
  enum class Kind { undecided, taken, skipped, no_data };

  Kind kind = Kind::undecided;
  std::function<void()> decide;  ///< waits and sets the kind; of the engine, which takes it back when it goes

  Kind get() {
    // A copy, because set() ends the one that is kept.
    if (const auto ask = decide) ask();
    return kind;
  }
  void set(Kind known) {
    kind = known;
    decide = nullptr;
  }
};

}  // namespace zerosched::detail
