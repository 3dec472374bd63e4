#include "train.h"

#include "checkpoints.h"
#include "metrics.h"
#include "model.h"
#include "optimizers.h"
#include "progress.h"
#include "readiness.h"
#include "step_times.h"

#include <zerosched/safetensors.h>

#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

double peak_rss_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;  // ru_maxrss is in KiB
}

/// Collective.
double all_reduced(const zerosched::Session& session, double value, zerosched::ReduceOp op) {
  const auto tensor = torch::full({1}, value, torch::kDouble);
  session.communicator()->all_reduce(tensor, op)->wait();
  return tensor.item<double>();
}

/// Mean cross-entropy in nats per byte, in float32 whatever the model's dtype.
torch::Tensor loss_of(Gpt& model, const Batch& batch) {
  const auto logits = model->forward(batch.inputs).flatten(0, 1).to(torch::kFloat32);
  return torch::nn::functional::cross_entropy(logits, batch.targets.flatten());
}

/// Held-out loss of the parameters that the model holds now, over the same batches at every call. Collective.
double evaluate(const zerosched::Session& session, const Options& options, const Corpus& corpus, Gpt& model) {
  const torch::NoGradGuard no_grad;
  std::mt19937_64 generator(options.seed + static_cast<uint64_t>(session.rank()));
  double sum = 0;
  for (int64_t i = 0; i < options.eval_batches; ++i) {
    const auto batch = corpus.draw(Corpus::Part::held_out, options.batch, options.seq, generator);
    sum += loss_of(model, batch.to(session.device())).item<double>();
  }
  sum = all_reduced(session, sum, zerosched::ReduceOp::sum);
  return sum / static_cast<double>(options.eval_batches * session.world_size());
}

std::string sample_text(const Options& options, Gpt& model, torch::Device device) {
  const torch::NoGradGuard no_grad;
  auto context = torch::full({1, 1}, '\n', torch::TensorOptions(torch::kLong).device(device));
  std::string text;
  for (int64_t i = 0; i < options.sample; ++i) {
    const auto logits = model->forward(context).select(1, -1).to(torch::kFloat32);
    const auto next = torch::multinomial(logits.softmax(-1), 1);
    text += static_cast<char>(next.item<int64_t>());
    context = torch::cat({context, next}, 1);
    context = context.slice(1, std::max<int64_t>(0, context.size(1) - options.seq));
  }
  return text;
}

/// Held-out losses at y and at x. Collective.
std::pair<double, double> evaluate_y_and_x(const zerosched::Session& session, const Options& options,
    const Corpus& corpus, Gpt& model, zerosched::ShardedOptimizer& optimizer) {
  model->eval();
  const double at_y = evaluate(session, options, corpus, model);
  const auto evaluation = optimizer.eval_scope();  // the model holds x until this ends
  const double at_x = evaluate(session, options, corpus, model);
  model->train();
  return {at_y, at_x};
}

/// Waits until all ranks are here, so that a step is timed without the others' delays; whether any of them
/// was told to stop. Collective.
bool stop_requested(const zerosched::Session& session, const zerosched::StopSignal* stop) {
  if (stop != nullptr) return stop->requested(*session.communicator());
  session.communicator()->barrier()->wait();
  return false;
}

/// Seconds by phase.
nlohmann::json by_phase(const zerosched::Timings& timings) {
  nlohmann::json phases;
  for (const auto& [name, seconds] : zerosched::kTimingPhases) phases[name] = timings.*seconds;
  return phases;
}

nlohmann::json by_rank(const zerosched::TimingReport& report) {
  auto ranks = nlohmann::json::array();
  for (const auto& rank : report.ranks) {
    ranks.push_back({{"mean_s", by_phase(rank.mean)}, {"worst_s", by_phase(rank.worst)}});
  }
  return ranks;
}

void check_loss(double loss, int64_t step) {
  if (std::isfinite(loss)) return;
  throw std::runtime_error("the loss is " + std::to_string(loss) + " at step " + std::to_string(step) +
                           ": lower --lr, raise --warmup-steps or set --max-grad-norm");
}

}  // namespace

std::optional<TrainResult> train(const zerosched::Session& session, const Options& options,
    const Corpus& corpus, const zerosched::StopSignal* stop) {
  at::set_num_threads(options.threads);
  torch::manual_seed(options.seed);
  Gpt model(options.dim, options.layers, options.heads, options.seq, options.dropout);
  model->to(session.device(), options.dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat32);
  std::mt19937_64 generator(options.seed + 1234 + static_cast<uint64_t>(session.rank()));
  if (options.dropout > 0) torch::manual_seed(options.seed + 5678 + static_cast<uint64_t>(session.rank()));
  std::unique_ptr<zerosched::ShardedOptimizer> made;
  Position position;
  MetricsFile metrics;
  std::string problem;
  try {
    made = make_optimizer(session, options, model);
    position = resume(*made, options, generator, session.device());
    if (session.rank() == 0 && !options.metrics.empty())
      metrics = MetricsFile(options.metrics, position.step);
  } catch (const std::exception& error) {
    // Ranks that no longer reach each other are another matter.
    if (made && !made->communicator()->failure().empty()) throw;
    problem = message_of(error);
  }
  if (!every_rank_is_ready(session, problem)) return std::nullopt;
  zerosched::ShardedOptimizer& optimizer = *made;
  if (options.overlap_forward) {
    model->before_use = [&optimizer](const torch::nn::Module& part) { optimizer.ready(part); };
  }
  const auto tokens_per_step = static_cast<double>(options.batch * options.seq * session.world_size());
  Progress progress(session.rank() == 0 ? options.progress : "off", options.steps);
  StepTimes times;
  std::optional<std::pair<double, double>> losses;  // at y and x, after the last step
  TrainResult result;
  const auto start = Clock::now();

  while (position.step < options.steps) {
    const int64_t step = position.step + 1;
    const auto batch =
        corpus.draw(Corpus::Part::training, options.batch, options.seq, generator).to(session.device());
    const bool stopping = stop_requested(session, stop);
    const auto step_start = Clock::now();
    const auto loss = loss_of(model, batch);
    const auto forward_end = Clock::now();
    loss.backward();
    schedule_lr(optimizer, options, step);
    const auto backward_end = Clock::now();
    try {
      // The loss is for those whose step size comes from it.
      optimizer.step([&] { return torch::Tensor(loss); });
    } catch (const std::exception&) {
      check_loss(loss.item<double>(), step);  // which says more than that the gradients are not finite
      throw;
    }
    optimizer.zero_grad();
    position.step = step;
    position.last_loss = loss.item<double>();  // waits for a GPU, so that all of the step is timed
    const auto step_end = Clock::now();

    if (step == 1) position.first_loss = position.last_loss;
    check_loss(position.last_loss, step);
    const auto timings = optimizer.timings();
    times.add(seconds_between(step_start, step_end), seconds_between(start, step_end),
        {{"forward", seconds_between(step_start, forward_end)},
            {"backward", seconds_between(forward_end, backward_end)}, {"step", timings.step},
            {"collect_gradients", timings.collect_gradients}, {"norm", timings.norm},
            {"wait_reduce_scatter", timings.wait_reduce_scatter}, {"update", timings.update},
            {"wait_all_gather", timings.wait_all_gather}});
    const double tokens_per_s = tokens_per_step / seconds_between(step_start, step_end);
    nlohmann::json line = {{"step", step}, {"time_s", seconds_between(start, step_end)},
        {"loss", position.last_loss}, {"tokens_per_s", tokens_per_s}};
    const auto due = [step](int64_t every) { return every > 0 && step % every == 0; };
    if (step == options.steps || (due(options.eval_every) && !stopping)) {
      losses = evaluate_y_and_x(session, options, corpus, model, optimizer);
      line["eval_loss_y"] = losses->first;
      line["eval_loss_x"] = losses->second;
    }
    metrics.write(line);
    progress.update(step, position.last_loss, tokens_per_s);
    if (stopping || due(options.checkpoint_every) ||
        (step == options.steps && !options.checkpoint_dir.empty())) {
      save_checkpoint(optimizer, options, position, generator, session.device());
    }
    if (stopping && step < options.steps) {
      result.stopped = true;
      break;
    }
  }
  progress.finish();
  result.steps = position.step;
  result.timings = optimizer.timing_report();
  if (result.stopped) return result;

  // Where the checkpoint was of the last step, that was not done in the loop.
  if (!losses) losses = evaluate_y_and_x(session, options, corpus, model, optimizer);
  if (!options.export_path.empty()) zerosched::export_safetensors(optimizer, options.export_path);
  {
    model->eval();
    const auto evaluation = optimizer.eval_scope();
    if (session.rank() == 0) result.sample = sample_text(options, model, session.device());
  }
  int64_t parameters = 0;
  for (const auto& parameter : model->parameters()) parameters += parameter.numel();
  const auto straggler = result.timings.straggler();
  result.report = {{"params", parameters}, {"world_size", session.world_size()}, {"steps", options.steps},
      {"median_step_s", times.median()}, {"min_step_s", times.min()}, {"mean_step_s", times.mean()},
      {"mean_phase_s", times.mean_of_phases()}, {"ranks", by_rank(result.timings)},
      {"straggler", straggler ? nlohmann::json(straggler->rank) : nlohmann::json()},
      {"peak_rss_mib", all_reduced(session, peak_rss_mib(), zerosched::ReduceOp::max)},
      {"first_loss", position.first_loss}, {"last_loss", position.last_loss}, {"eval_loss_x", losses->second},
      {"eval_loss_y", losses->first}, {"state_bytes", optimizer.state_bytes()}};
  return result;
}
