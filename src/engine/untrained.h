#pragma once

#include "engine/model.h"

#include <zerosched/communicator.h>
#include <zerosched/trainable.h>

#include <functional>
#include <string>
#include <vector>

namespace zerosched::detail {

/// Finds what a user believes to train and does not: what was registered in the module or replaced after the
/// optimizer was constructed, and parameters that no backward has reached. Warns, once of each kind, because
/// either may be meant.
class Untrained {
 public:
  /// The others must outlive this.
  Untrained(Trainable what, const Model& model, Communicator& communicator)
      : what_(std::move(what)), model_(model), communicator_(communicator) {}

  /// `has_stepped`: the same on every rank. `used` says for each trained parameter whether it has had a gradient
  /// on this rank. Collective; it communicates in the first call with has_stepped.
  void run(bool has_stepped, const std::function<std::vector<bool>()>& used);

 private:
  std::string apart() const;
  std::vector<std::string> unused(const std::vector<bool>& used) const;

  Trainable what_;
  const Model& model_;
  Communicator& communicator_;
  bool told_apart_ = false;
  bool asked_for_unused_ = false;
};

}  // namespace zerosched::detail
