#include "io/checkpoint.h"
#include "api/checkpoint_error.h"
#include "base/check.h"

#include "comm/agree.h"
#include "comm/failure/whereabouts.h"
#include "engine/engine.h"
#include "engine/equal_on_ranks.h"
#include "io/checkpoint_list.h"

#include <zerosched/sharded_optimizer.h>

namespace zerosched {

namespace {

// What of a list is checked before any rank communicates: it is written in the program, the same on every rank.
void check_list(const std::vector<ShardedOptimizer*>& optimizers, const char* caller, bool may_be_null) {
  bool any = false;
  for (size_t i = 0; i < optimizers.size(); ++i) {
    ZEROSCHED_CHECK(
        optimizers[i] != nullptr || may_be_null, caller, ": optimizer ", i, " is a null pointer.");
    for (size_t j = 0; j < i; ++j) {
      ZEROSCHED_CHECK(optimizers[i] == nullptr || optimizers[i] != optimizers[j], caller, ": optimizers ", j,
          " and ", i, " are the same.");
    }
    any = any || optimizers[i] != nullptr;
  }
  ZEROSCHED_CHECK(any, caller, ": no optimizer was given.");
}

}  // namespace

void ShardedOptimizer::save_checkpoint(
    const std::string& dir, const CheckpointExtra& extra, const CheckpointOptions& options) {
  const detail::InCall call("save_checkpoint()");
  detail::about_path(dir, [&] { detail::save_checkpoint(*engine_, group_options(), dir, extra, options); });
}

CheckpointExtra ShardedOptimizer::load_checkpoint(const std::string& dir) {
  return load_checkpoint(dir, LoadOptions()).extra;
}

LoadedCheckpoint ShardedOptimizer::load_checkpoint(const std::string& dir, const LoadOptions& options) {
  const detail::InCall call("load_checkpoint()");
  return detail::about_path(
      dir, [&] { return detail::load_checkpoint(*engine_, group_options(), dir, options); });
}

void save_checkpoint(const std::string& dir, const std::vector<ShardedOptimizer*>& optimizers,
    const CheckpointExtra& extra, const CheckpointOptions& options) {
  const detail::InCall call("save_checkpoint()");
  check_list(optimizers, "save_checkpoint", /*may_be_null=*/false);
  std::vector<detail::CheckpointedOptimizer> parts;
  for (ShardedOptimizer* each : optimizers) parts.push_back({each->engine_.get(), each->group_options()});
  detail::about_path(dir, [&] { detail::save_checkpoint(parts, dir, extra, options); });
}

CheckpointExtra load_checkpoint(const std::string& dir, const std::vector<ShardedOptimizer*>& optimizers) {
  return load_checkpoint(dir, optimizers, LoadOptions()).extra;
}

LoadedCheckpoint load_checkpoint(
    const std::string& dir, const std::vector<ShardedOptimizer*>& optimizers, const LoadOptions& options) {
  const detail::InCall call("load_checkpoint()");
  check_list(optimizers, "load_checkpoint", /*may_be_null=*/true);
  std::vector<detail::CheckpointedOptimizer> parts;
  for (ShardedOptimizer* each : optimizers) {
    if (each == nullptr) {
      parts.push_back({});
    } else {
      parts.push_back({each->engine_.get(), each->group_options()});
    }
  }
  return detail::about_path(dir, [&] { return detail::load_checkpoint(parts, dir, options); });
}

std::string latest_checkpoint(const std::string& root) {
  return detail::about_path(root, [&] { return detail::newest_checkpoint(root); });
}

std::string latest_checkpoint(const std::string& root, Communicator& communicator) {
  const detail::InCall call("latest_checkpoint()");
  return detail::about_path(root, [&] {
    detail::check_same_on_all_ranks(communicator, {"latest_checkpoint(\"" + root + "\")"});
    std::string found;
    detail::agree_on(communicator, [&] {
      if (communicator.rank() == 0) found = detail::newest_checkpoint(root);
    });
    return detail::broadcast_bytes(communicator, found, 0, {"latest checkpoint"});
  });
}

}  // namespace zerosched
