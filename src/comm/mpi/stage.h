#pragma once

namespace zerosched::detail {

/// A part of a collective's data that moves on its own. Driver only (see MpiGroup).
class Stage {
 public:
  Stage() = default;
  virtual ~Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  /// Advances, the first time from the start; returns whether anything moved. Never blocks.
  virtual bool poll() = 0;
  virtual bool done() const = 0;
};

}  // namespace zerosched::detail
