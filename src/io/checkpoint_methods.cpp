#include "comm/whereabouts.h"
#include "io/checkpoint.h"

#include <zerosched/sharded_optimizer.h>

namespace zerosched {

void ShardedOptimizer::save_checkpoint(
    const std::string& dir, const CheckpointExtra& extra, const CheckpointOptions& options) {
  const detail::InCall call("save_checkpoint()");
  detail::save_checkpoint(*engine_, group_options(), dir, extra, options);
}

CheckpointExtra ShardedOptimizer::load_checkpoint(const std::string& dir) {
  const detail::InCall call("load_checkpoint()");
  return detail::load_checkpoint(*engine_, group_options(), dir);
}

}  // namespace zerosched
