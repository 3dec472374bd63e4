#include "train.h"

#include "data_order.h"
#include "optimizers.h"

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <optional>

namespace {

using Json = nlohmann::ordered_json;

/// Collective. In place.
const torch::Tensor& summed(const zerosched::Session& session, const torch::Tensor& tensor) {
  session.communicator()->all_reduce(tensor)->wait();
  return tensor;
}

/// Of all ranks, since their processes began, in seconds. Collective.
double cpu_seconds(const zerosched::Session& session) {
  const double own = static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
  return summed(session, torch::full({1}, own, torch::kDouble)).item<double>();
}

/// The most that a rank has had, in MiB. Collective.
double peak_rss(const zerosched::Session& session) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto peak =
      torch::full({1}, static_cast<double>(usage.ru_maxrss) / 1024, torch::kDouble);  // from KiB
  session.communicator()->all_reduce(peak, zerosched::ReduceOp::max)->wait();
  return peak.item<double>();
}

template <typename Value>
Json or_null(const std::optional<Value>& value) {
  return value ? Json(*value) : Json();
}

Json description(const zerosched::Session& session, const Options& options, Task& task, int64_t state_bytes) {
  int64_t parameters = 0;
  for (const auto& parameter : task.module().parameters()) parameters += parameter.numel();
  return {{"kind", "start"}, {"task", options.task}, {"optimizer", options.optimizer}, {"lr", options.lr},
      {"weight_decay", options.weight_decay}, {"beta1", or_null(options.beta1)},
      {"beta2", or_null(options.beta2)}, {"momentum", or_null(options.momentum)},
      {"refinement", or_null(options.refinement)}, {"inner_momentum", or_null(options.inner_momentum)},
      {"eval_interp", or_null(options.eval_interp)}, {"nesterov", options.nesterov},
      {"schedule", options.schedule}, {"warmup", options.warmup}, {"steps", options.steps},
      {"batch", options.batch}, {"seed", options.seed}, {"dtype", options.dtype},
      {"world_size", session.world_size()}, {"parameters", parameters}, {"state_bytes", state_bytes}};
}

/// T/8, T/4, T/2 and T are what runs are compared at; between them fewer samples may do.
bool is_main_point(int64_t step, int64_t steps) {
  return step > 0 && steps % step == 0 &&
         (steps / step == 1 || steps / step == 2 || steps / step == 4 || steps / step == 8);
}

/// At x, over all ranks, on the samples that the step asks for; nothing where training has diverged. Collective.
std::optional<Json> evaluate(const zerosched::Session& session, const Options& options, int64_t step,
    Task& task, zerosched::ShardedOptimizer& optimizer) {
  const torch::NoGradGuard no_grad;
  task.module().eval();
  const auto evaluation = optimizer.eval_scope();  // the module holds x until this ends
  if (!task.prepare_evaluation(session)) return std::nullopt;
  const int64_t samples =
      is_main_point(step, options.steps) ? task.evaluation_samples() : task.quick_evaluation_samples();
  const int64_t first = samples * session.rank() / session.world_size();
  const int64_t end = samples * (session.rank() + 1) / session.world_size();
  const auto sums = summed(session, task.evaluate(first, end));
  task.module().train();
  Json line = {{"kind", "evaluation"}, {"step", step}, {"samples", samples}};
  for (const auto& [name, value] : task.metrics(sums, samples)) line["metrics"][name] = value;
  return line;
}

bool all_finite(const Json& metrics) {
  for (const auto& metric : metrics) {
    if (!std::isfinite(metric.get<double>())) return false;
  }
  return true;
}

}  // namespace

void train(const zerosched::Session& session, const Options& options, Task& task, const WriteLine& write) {
  const auto optimizer = make_optimizer(session, options, task.module());
  DataOrder order(task.training_samples(), options.batch, options.seed);
  write(description(session, options, task, optimizer->state_bytes()));

  auto losses = torch::zeros({2}, torch::kDouble);  // sum and weight since the last evaluation, of this rank
  auto next_evaluation = options.evaluate_at.begin();
  bool diverged = false;
  int64_t step = 0;
  double seconds = 0;  // of steps alone
  const auto evaluate_if_due = [&] {
    if (next_evaluation == options.evaluate_at.end() || *next_evaluation != step) return;
    ++next_evaluation;
    auto evaluated = evaluate(session, options, step, task, *optimizer);
    diverged = !evaluated || !all_finite((*evaluated)["metrics"]);
    if (!evaluated) return;
    Json& line = *evaluated;
    const auto total = summed(session, losses);
    if (step > 0) line["training_loss"] = (total[0] / total[1]).item<double>();
    losses.zero_();
    line["cpu_s"] = cpu_seconds(session);
    write(line);
  };

  evaluate_if_due();
  while (step < options.steps && !diverged) {
    const auto start = std::chrono::steady_clock::now();
    const auto samples = order.next(session.rank(), session.world_size());
    const auto loss = task.loss(samples);
    optimizer->step_weight(loss.weight);
    loss.mean.backward();
    schedule_lr(*optimizer, options, ++step);
    optimizer->step([&] { return loss.mean; });  // which those need whose step size comes from the loss
    optimizer->zero_grad();
    losses[0] += loss.mean.item<double>() * loss.weight;
    losses[1] += loss.weight;
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    diverged = optimizer->skipped_steps() > 0;
    if (!diverged) evaluate_if_due();
  }
  const double cpu_s = cpu_seconds(session);
  const double peak_rss_mib = peak_rss(session);
  write({{"kind", "end"}, {"steps", step}, {"diverged", diverged},
      {"step_s", seconds / static_cast<double>(step)}, {"cpu_s", cpu_s}, {"peak_rss_mib", peak_rss_mib}});
}
