#pragma once

#include "comm/mpi/operation.h"
#include "comm/mpi/stage.h"

#include <deque>
#include <memory>
#include <utility>

namespace zerosched::detail {

/// A collective whose data moves in stages, one after the other.
class PhasedOperation : public Operation {
 public:
  using Operation::Operation;

 protected:
  template <typename Kind, typename... Arguments>
  void then(Arguments&&... arguments) {
    stages_.push_back(std::make_unique<Kind>(std::forward<Arguments>(arguments)...));
  }
  /// Once the last stage is through.
  virtual void end_data() {}

 private:
  bool poll_data() final;

  std::deque<std::unique_ptr<Stage>> stages_;
};

}  // namespace zerosched::detail
