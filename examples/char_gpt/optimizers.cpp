#include "optimizers.h"

#include "model.h"

#include <zerosched/adamw.h>
#include <zerosched/optimizers.h>
#include <zerosched/sgd.h>

#include <cmath>

std::string problem_with_optimizer(const std::string& name) {
  try {
    zerosched::default_options(name);
    return {};
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

std::unique_ptr<zerosched::ShardedOptimizer> make_optimizer(
    const zerosched::Session& session, const Options& options, const Gpt& model) {
  const auto chosen = zerosched::default_options(options.optimizer);
  // An optimizer takes those that it has; momentum is what beta1 is elsewhere.
  const std::pair<const char*, double> values[] = {{"lr", options.lr}, {"beta1", options.beta1},
      {"momentum", options.beta1}, {"beta2", options.beta2}, {"weight_decay", options.weight_decay},
      {"warmup_steps", static_cast<double>(options.warmup_steps)}};
  for (const auto& [name, value] : values) chosen->set(name, value);
  zerosched::ShardingOptions sharding;
  sharding.max_grad_norm(options.max_grad_norm);
  sharding.overlap_forward(options.overlap_forward).check_ready(options.check_ready);
  if (options.bucket_bytes) sharding.bucket_bytes(*options.bucket_bytes);
  return zerosched::make_optimizer(options.optimizer, *model, session.communicator(), *chosen, sharding);
}

void schedule_lr(zerosched::ShardedOptimizer& optimizer, const Options& options, int64_t step) {
  // What Schedule-Free is compared with.
  if (dynamic_cast<zerosched::AdamW*>(&optimizer) == nullptr &&
      dynamic_cast<zerosched::SGD*>(&optimizer) == nullptr) {
    return;
  }
  double factor = 1;
  if (step <= options.warmup_steps) {
    factor = static_cast<double>(step) / static_cast<double>(options.warmup_steps);
  } else {
    const auto done = static_cast<double>(step - options.warmup_steps - 1);
    factor = 0.5 * (1 + std::cos(M_PI * done / static_cast<double>(options.steps - options.warmup_steps)));
  }
  for (auto& group : optimizer.param_groups()) group.options().set_lr(options.lr * factor);
}
