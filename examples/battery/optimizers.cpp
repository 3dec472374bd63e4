#include "optimizers.h"

#include <zerosched/adamw.h>
#include <zerosched/adamw_schedulefree.h>
#include <zerosched/adamw_schedulefree_paper.h>
#include <zerosched/adamw_schedulefree_plus.h>
#include <zerosched/gpa_adamw.h>
#include <zerosched/radam_schedulefree.h>
#include <zerosched/sgd.h>
#include <zerosched/sgd_schedulefree.h>

#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <tuple>

namespace {

using OptimizerPointer = std::unique_ptr<zerosched::ShardedOptimizer>;

struct Job {
  const zerosched::Session& session;
  const Options& options;
  const torch::nn::Module& module;

  template <typename Optimizer, typename OptimizerOptions>
  OptimizerPointer make(OptimizerOptions optimizer_options) const {
    optimizer_options.weight_decay(options.weight_decay);
    // A learning rate that is too large is a result here, and not an error.
    const auto sharding = zerosched::ShardingOptions().non_finite(zerosched::NonFinite::skip);
    return std::make_unique<Optimizer>(module, session.communicator(), optimizer_options, sharding);
  }

  template <typename OptimizerOptions>
  OptimizerOptions with_betas(OptimizerOptions optimizer_options) const {
    const auto defaults = optimizer_options.betas();
    return optimizer_options.betas(
        {options.beta1.value_or(std::get<0>(defaults)), options.beta2.value_or(std::get<1>(defaults))});
  }
};

struct Kind {
  std::set<std::string> takes;  // of the options that not all optimizers take
  std::function<OptimizerPointer(const Job&)> make;
};

const std::map<std::string, Kind>& kinds() {
  using namespace zerosched;  // NOLINT(google-build-using-namespace): the family, by its names
  static const std::map<std::string, Kind> table = {
      {"adamw-schedulefree", {{"--beta1", "--beta2", "--warmup", "--refinement", "--inner-momentum"},
                                 [](const Job& job) {
                                   return job.make<AdamWScheduleFree>(
                                       job.with_betas(AdamWScheduleFreeOptions(job.options.lr))
                                           .warmup_steps(job.options.warmup)
                                           .refinement(job.options.refinement.value_or(0))
                                           .inner_momentum(job.options.inner_momentum.value_or(0)));
                                 }}},
      {"adamw-schedulefree-plus", {{"--beta1", "--beta2"},
                                      [](const Job& job) {
                                        return job.make<AdamWScheduleFreePlus>(
                                            job.with_betas(AdamWScheduleFreePlusOptions(job.options.lr)));
                                      }}},
      {"gpa-adamw", {{"--beta1", "--beta2", "--warmup", "--eval-interp"},
                        [](const Job& job) {
                          GPAAdamWOptions options(job.options.lr);
                          options.warmup_steps(job.options.warmup);
                          if (job.options.eval_interp) options.eval_interp_coeff(*job.options.eval_interp);
                          return job.make<GPAAdamW>(job.with_betas(options));
                        }}},
      {"adamw-schedulefree-paper", {{"--beta1", "--beta2", "--warmup"},
                                       [](const Job& job) {
                                         return job.make<AdamWScheduleFreePaper>(
                                             job.with_betas(AdamWScheduleFreePaperOptions(job.options.lr))
                                                 .warmup_steps(job.options.warmup));
                                       }}},
      {"radam-schedulefree", {{"--beta1", "--beta2"},
                                 [](const Job& job) {
                                   return job.make<RAdamScheduleFree>(
                                       job.with_betas(RAdamScheduleFreeOptions(job.options.lr)));
                                 }}},
      {"sgd-schedulefree", {{"--momentum", "--warmup"},
                               [](const Job& job) {
                                 SGDScheduleFreeOptions options(job.options.lr);
                                 options.warmup_steps(job.options.warmup);
                                 if (job.options.momentum) options.momentum(*job.options.momentum);
                                 return job.make<SGDScheduleFree>(options);
                               }}},
      {"adamw",
          {{"--beta1", "--beta2", "--warmup", "--schedule"},
              [](const Job& job) { return job.make<AdamW>(job.with_betas(AdamWOptions(job.options.lr))); }}},
      {"sgd", {{"--momentum", "--nesterov", "--warmup", "--schedule"}, [](const Job& job) {
                 return job.make<SGD>(SGDOptions(job.options.lr)
                                          .momentum(job.options.momentum.value_or(0))
                                          .nesterov(job.options.nesterov));
               }}}};
  return table;
}

}  // namespace

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const auto& kind : kinds()) names.push_back(kind.first);
  return names;
}

std::string problem_with_optimizer(const Options& options) {
  const auto& takes = kinds().at(options.optimizer).takes;
  const std::map<std::string, bool> given = {{"--beta1", options.beta1.has_value()},
      {"--beta2", options.beta2.has_value()}, {"--momentum", options.momentum.has_value()},
      {"--refinement", options.refinement.has_value()},
      {"--inner-momentum", options.inner_momentum.has_value()},
      {"--eval-interp", options.eval_interp.has_value()}, {"--nesterov", options.nesterov},
      {"--warmup", options.warmup > 0}, {"--schedule", options.schedule != "constant"}};
  for (const auto& [name, is_given] : given) {
    if (is_given && takes.count(name) == 0) return name + " is no option of --optimizer " + options.optimizer;
  }
  return {};
}

OptimizerPointer make_optimizer(
    const zerosched::Session& session, const Options& options, const torch::nn::Module& module) {
  return kinds().at(options.optimizer).make({session, options, module});
}

void schedule_lr(zerosched::ShardedOptimizer& optimizer, const Options& options, int64_t step) {
  if (kinds().at(options.optimizer).takes.count("--schedule") == 0) return;
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
