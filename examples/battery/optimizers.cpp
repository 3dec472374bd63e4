#include "optimizers.h"

#include <zerosched/adamw.h>
#include <zerosched/optimizers.h>
#include <zerosched/sgd.h>

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

namespace {

// Options of an optimizer that were given, by our name and by the library's.
std::vector<std::pair<std::string, std::pair<std::string, double>>> given(const Options& options) {
  std::vector<std::pair<std::string, std::pair<std::string, double>>> result;
  const auto add = [&](const char* ours, const char* name, std::optional<double> value) {
    if (value) result.push_back({ours, {name, *value}});
  };
  add("--beta1", "beta1", options.beta1);
  add("--beta2", "beta2", options.beta2);
  add("--momentum", "momentum", options.momentum);
  add("--refinement", "refinement", options.refinement);
  add("--inner-momentum", "inner_momentum", options.inner_momentum);
  add("--eval-interp", "eval_interp_coeff", options.eval_interp);
  if (options.nesterov) add("--nesterov", "nesterov", 1);
  if (options.warmup > 0 && !takes_schedule(options.optimizer)) {
    add("--warmup", "warmup_steps", static_cast<double>(options.warmup));
  }
  return result;
}

}  // namespace

bool takes_schedule(const std::string& optimizer) {
  const auto options = zerosched::default_options(optimizer);
  return dynamic_cast<zerosched::AdamWOptions*>(options.get()) != nullptr ||
         dynamic_cast<zerosched::SGDOptions*>(options.get()) != nullptr;
}

std::string problem_with_optimizer(const Options& options) {
  try {
    const auto chosen = zerosched::default_options(options.optimizer);
    for (const auto& [ours, option] : given(options)) {
      if (!chosen->set(option.first, option.second))
        return ours + " is no option of --optimizer " + options.optimizer;
    }
    if (options.schedule != "constant" && !takes_schedule(options.optimizer)) {
      return "--schedule is no option of --optimizer " + options.optimizer;
    }
    return {};
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

std::unique_ptr<zerosched::ShardedOptimizer> make_optimizer(
    const zerosched::Session& session, const Options& options, const torch::nn::Module& module) {
  const auto chosen = zerosched::default_options(options.optimizer);
  chosen->set_lr(options.lr);
  chosen->set("weight_decay", options.weight_decay);
  for (const auto& [ours, option] : given(options)) chosen->set(option.first, option.second);
  // A learning rate that is too large is a result here, and not an error.
  const auto sharding = zerosched::ShardingOptions().non_finite(zerosched::NonFinite::skip);
  return zerosched::make_optimizer(options.optimizer, module, session.communicator(), *chosen, sharding);
}

void schedule_lr(zerosched::ShardedOptimizer& optimizer, const Options& options, int64_t step) {
  if (!takes_schedule(options.optimizer)) return;
  double factor = 1;
  if (step <= options.warmup) {
    factor = static_cast<double>(step) / static_cast<double>(options.warmup);
  } else if (options.schedule != "constant") {
    // From 0 at the first step after warmup; it would be 1 at the step after the last.
    const double done =
        static_cast<double>(step - options.warmup - 1) / static_cast<double>(options.steps - options.warmup);
    factor = options.schedule == "linear" ? 1 - done : 0.5 * (1 + std::cos(M_PI * done));
  }
  for (auto& group : optimizer.param_groups()) group.options().set_lr(options.lr * factor);
}
