#include "train.h"

#include "model.h"
#include "optimizers.h"
#include "progress.h"
#include "step_times.h"

#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

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

}  // namespace

TrainResult train(
    const zerosched::Session& session, const Options& options, const Corpus& corpus, MetricsFile& metrics) {
  at::set_num_threads(options.threads);
  torch::manual_seed(options.seed);
  Gpt model(options.dim, options.layers, options.heads, options.seq);
  model->to(session.device(), options.dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat32);
  const auto made = make_optimizer(session, options, model);
  zerosched::ShardedOptimizer& optimizer = *made;
  optimizer.train();

  std::mt19937_64 generator(options.seed + 1234 + static_cast<uint64_t>(session.rank()));
  const auto tokens_per_step = static_cast<double>(options.batch * options.seq * session.world_size());
  Progress progress(session.rank() == 0 ? options.progress : "off", options.steps);
  StepTimes times;
  double first_loss = 0, last_loss = 0, eval_loss_x = 0, eval_loss_y = 0;
  const auto start = Clock::now();

  for (int64_t step = 1; step <= options.steps; ++step) {
    const auto batch =
        corpus.draw(Corpus::Part::training, options.batch, options.seq, generator).to(session.device());
    session.communicator()->barrier()->wait();  // only to time this rank's step without the others' delays
    const auto step_start = Clock::now();
    const auto loss = loss_of(model, batch);
    const auto forward_end = Clock::now();
    loss.backward();
    schedule_lr(optimizer, options, step);
    const auto backward_end = Clock::now();
    optimizer.step();
    optimizer.zero_grad();
    const auto step_end = Clock::now();

    last_loss = loss.item<double>();
    if (step == 1) first_loss = last_loss;
    if (!std::isfinite(last_loss)) {
      throw std::runtime_error(
          "the loss is " + std::to_string(last_loss) + " at step " + std::to_string(step) +
          ": lower --lr, raise --warmup-steps or set --max-grad-norm");
    }
    const auto timings = optimizer.timings();
    times.add(
        seconds_between(step_start, step_end), {{"forward", seconds_between(step_start, forward_end)},
                                                {"backward", seconds_between(forward_end, backward_end)},
                                                {"step", timings.step},
                                                {"collect_gradients", timings.collect_gradients},
                                                {"norm", timings.norm},
                                                {"wait_reduce_scatter", timings.wait_reduce_scatter},
                                                {"update", timings.update},
                                                {"wait_all_gather", timings.wait_all_gather}});
    const double tokens_per_s = tokens_per_step / seconds_between(step_start, step_end);
    nlohmann::json line = {{"step", step},
                           {"time_s", seconds_between(start, step_end)},
                           {"loss", last_loss},
                           {"tokens_per_s", tokens_per_s}};

    if (step == options.steps || (options.eval_every > 0 && step % options.eval_every == 0)) {
      line["eval_loss_y"] = eval_loss_y = evaluate(session, options, corpus, model);
      const auto evaluation = optimizer.eval_scope();  // the model holds x until this ends
      line["eval_loss_x"] = eval_loss_x = evaluate(session, options, corpus, model);
    }
    metrics.write(line);
    progress.update(step, last_loss, tokens_per_s);
  }
  progress.finish();

  TrainResult result;
  {
    const auto evaluation = optimizer.eval_scope();
    if (session.rank() == 0) result.sample = sample_text(options, model, session.device());
  }
  int64_t parameters = 0;
  for (const auto& parameter : model->parameters()) parameters += parameter.numel();
  result.report = {
      {"params", parameters},
      {"world_size", session.world_size()},
      {"steps", options.steps},
      {"median_step_s", times.median()},
      {"min_step_s", times.min()},
      {"mean_phase_s", times.mean_of_phases()},
      {"peak_rss_mib", all_reduced(session, peak_rss_mib(), zerosched::ReduceOp::max)},
      {"first_loss", first_loss},
      {"last_loss", last_loss},
      {"eval_loss_x", eval_loss_x},
      {"eval_loss_y", eval_loss_y},
      {"state_bytes", optimizer.state_bytes()}};
  return result;
}
