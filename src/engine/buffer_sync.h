#pragma once

#include "engine/executor.h"
#include "engine/model.h"

#include <zerosched/communicator.h>

namespace zerosched::detail {

/// Keeps the module's buffers from drifting apart unseen. BatchNorm's running statistics follow each rank's own
/// data, but a module is evaluated, saved and exported as one.
class BufferSync {
 public:
  /// `broadcast`: buffers that differ become rank 0's; otherwise they stay, with a warning. The others must
  /// outlive this.
  BufferSync(const Model& model, Communicator& communicator, Executor& executor, bool broadcast)
      : model_(model), communicator_(communicator), executor_(executor), broadcast_(broadcast) {}

  /// Compares hashes, 16 bytes a buffer, and moves nothing but what differs. Where nothing is to be moved, warns on
  /// rank 0 the first time that something differs. Collective.
  void run();

 private:
  const Model& model_;
  Communicator& communicator_;
  Executor& executor_;
  const bool broadcast_;
  bool warned_ = false;
};

}  // namespace zerosched::detail
