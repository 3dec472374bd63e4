#include <zerosched/safetensors.h>

#include "api/checkpoint_error.h"
#include "comm/failure/whereabouts.h"
#include "engine/engine.h"
#include "io/module_file.h"

namespace zerosched {

void export_safetensors(ShardedOptimizer& optimizer, const std::string& path, const std::string& point) {
  const detail::InCall call("export_safetensors()");
  detail::about_path(path, [&] { detail::export_safetensors(*optimizer.engine_, path, point); });
}

void import_safetensors(ShardedOptimizer& optimizer, const std::string& path) {
  const detail::InCall call("import_safetensors()");
  detail::about_path(path, [&] { detail::import_safetensors(*optimizer.engine_, path); });
}

}  // namespace zerosched
