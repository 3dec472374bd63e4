#include "optimizers.h"

#include "model.h"

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

namespace {

using OptimizerPointer = std::unique_ptr<zerosched::ShardedOptimizer>;

struct Job {
  const zerosched::Session& session;
  const Options& options;
  const Gpt& model;

  template <typename Optimizer, typename OptimizerOptions>
  OptimizerPointer make(const OptimizerOptions& optimizer_options) const {
    zerosched::ShardingOptions sharding;
    sharding.max_grad_norm(options.max_grad_norm);
    sharding.overlap_forward(options.overlap_forward).check_ready(options.check_ready);
    if (options.bucket_bytes) sharding.bucket_bytes(*options.bucket_bytes);
    return std::make_unique<Optimizer>(*model, session.communicator(), optimizer_options, sharding);
  }
};

const std::map<std::string, std::function<OptimizerPointer(const Job&)>>& makers() {
  static const std::map<std::string, std::function<OptimizerPointer(const Job&)>> table = {
      {"adamw-schedulefree",
          [](const Job& job) {
            const Options& o = job.options;
            return job.make<zerosched::AdamWScheduleFree>(zerosched::AdamWScheduleFreeOptions(o.lr)
                                                              .betas({o.beta1, o.beta2})
                                                              .weight_decay(o.weight_decay)
                                                              .warmup_steps(o.warmup_steps));
          }},
      {"adamw-schedulefree-paper",
          [](const Job& job) {
            const Options& o = job.options;
            return job.make<zerosched::AdamWScheduleFreePaper>(zerosched::AdamWScheduleFreePaperOptions(o.lr)
                                                                   .betas({o.beta1, o.beta2})
                                                                   .weight_decay(o.weight_decay)
                                                                   .warmup_steps(o.warmup_steps));
          }},
      {"radam-schedulefree",
          [](const Job& job) {
            const Options& o = job.options;
            return job.make<zerosched::RAdamScheduleFree>(zerosched::RAdamScheduleFreeOptions(o.lr)
                                                              .betas({o.beta1, o.beta2})
                                                              .weight_decay(o.weight_decay));
          }},
      {"sgd-schedulefree",
          [](const Job& job) {
            const Options& o = job.options;
            return job.make<zerosched::SGDScheduleFree>(zerosched::SGDScheduleFreeOptions(o.lr)
                                                            .momentum(o.beta1)
                                                            .weight_decay(o.weight_decay)
                                                            .warmup_steps(o.warmup_steps));
          }},
      {"adamw-schedulefree-plus",
          [](const Job& job) {
            const Options& o = job.options;
            return job.make<zerosched::AdamWScheduleFreePlus>(zerosched::AdamWScheduleFreePlusOptions(o.lr)
                                                                  .betas({o.beta1, o.beta2})
                                                                  .weight_decay(o.weight_decay));
          }},
      {"gpa-adamw",
          [](const Job& job) {
            const Options& o = job.options;
            return job.make<zerosched::GPAAdamW>(zerosched::GPAAdamWOptions(o.lr)
                                                     .betas({o.beta1, o.beta2})
                                                     .weight_decay(o.weight_decay)
                                                     .warmup_steps(o.warmup_steps));
          }},
      {"adamw",
          [](const Job& job) {
            const Options& o = job.options;
            return job.make<zerosched::AdamW>(
                zerosched::AdamWOptions(o.lr).betas({o.beta1, o.beta2}).weight_decay(o.weight_decay));
          }},
      {"sgd", [](const Job& job) {
         const Options& o = job.options;
         return job.make<zerosched::SGD>(
             zerosched::SGDOptions(o.lr).momentum(o.beta1).weight_decay(o.weight_decay));
       }}};
  return table;
}

}  // namespace

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const auto& maker : makers()) names.push_back(maker.first);
  return names;
}

OptimizerPointer make_optimizer(const zerosched::Session& session, const Options& options, const Gpt& model) {
  return makers().at(options.optimizer)({session, options, model});
}

void schedule_lr(zerosched::ShardedOptimizer& optimizer, const Options& options, int64_t step) {
  if (options.optimizer != "adamw" && options.optimizer != "sgd") return;
  double factor = 1;
  if (step <= options.warmup_steps) {
    factor = static_cast<double>(step) / static_cast<double>(options.warmup_steps);
  } else {
    const auto done = static_cast<double>(step - options.warmup_steps - 1);
    factor = 0.5 * (1 + std::cos(M_PI * done / static_cast<double>(options.steps - options.warmup_steps)));
  }
  for (auto& group : optimizer.param_groups()) group.options().set_lr(options.lr * factor);
}
