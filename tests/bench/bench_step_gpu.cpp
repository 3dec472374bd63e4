// What a step of the optimizer costs one GPU, alone: seconds of the host per hook and per step(), seconds of the device in
// a training step of a GPT-2 beside its forward and backward, and bytes of memory beside what the state must take.
#include "bench/stopwatch.h"
#include "char_gpt/model.h"
#include "support/json_file.h"

#include <zerosched/adamw_schedulefree.h>
#include <zerosched/session.h>

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/nn.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using zerosched::AdamWScheduleFree;
using zerosched::AdamWScheduleFreeOptions;
using zerosched::Session;
using zerosched::ShardingOptions;
using zerosched::testing::median;
using zerosched::testing::seconds_of_host;
using zerosched::testing::Stopwatch;
using zerosched::testing::synchronize;

struct Options {
  std::vector<std::string> what = {"host", "step", "memory"};
  std::string device = "auto", json;
  int rounds = 15;
  int64_t parameters = 150;  // of host
  // Of step: GPT-2, its vocabulary filled up to a multiple of 64, without which the head's products take far longer.
  int64_t layers = 12, width = 768, vocabulary = 50304, context = 1024, batch = 48;
  int64_t memory_width = 4096;
};

/// Gradients whose kernels take no time worth speaking of, so that the device is idle whenever it is looked at.
torch::nn::Sequential many_small_layers(int64_t parameters, torch::Device device) {
  constexpr int64_t kWidth = 64;
  torch::manual_seed(0);
  torch::nn::Sequential model;
  for (int64_t i = 0; i < parameters / 2; ++i) model->push_back(torch::nn::Linear(kWidth, kWidth));
  model->to(device);
  return model;
}

/// Host seconds of one backward, and of the step() after it if there is an optimizer. The device is idle before each.
std::pair<double, double> host_seconds(
    torch::nn::Sequential& model, AdamWScheduleFree* optimizer, const torch::Tensor& input) {
  for (auto& parameter : model->parameters()) parameter.mutable_grad() = torch::Tensor();
  const auto loss = model->forward(input).square().mean();
  synchronize(input.device());
  const double backward = seconds_of_host([&] { loss.backward(); });
  synchronize(input.device());
  return {backward, optimizer != nullptr ? seconds_of_host([&] { optimizer->step(); }) : 0};
}

/// A hook's time is the difference of two backward passes of which autograd's thread takes most, in one moment more than in
/// the next: they alternate, in many rounds, and the median of their differences counts.
nlohmann::json measure_host(const Session& session, const Options& options) {
  auto plain = many_small_layers(options.parameters, session.device());
  auto hooked = many_small_layers(options.parameters, session.device());
  AdamWScheduleFree optimizer(
      *hooked, session.communicator(), AdamWScheduleFreeOptions(1e-3), ShardingOptions());
  const auto input = torch::randn({8, 64}, session.device());
  std::vector<double> without, with, difference, step;
  for (int round = -10; round < 16 * options.rounds; ++round) {
    const double of_plain = host_seconds(plain, nullptr, input).first;
    const auto [of_hooked, of_step] = host_seconds(hooked, &optimizer, input);
    if (round < 0) continue;  // to warm up
    without.push_back(of_plain);
    with.push_back(of_hooked);
    difference.push_back(of_hooked - of_plain);
    step.push_back(of_step);
  }
  const double of_step = median(step), of_hooked = median(with), of_plain = median(without);
  const double hook = median(difference) / static_cast<double>(options.parameters / 2 * 2);
  std::printf(
      "host, %lld parameters: %.2f us a hook, %.1f us a step(); backward %.0f us, without hooks %.0f us\n",
      static_cast<long long>(options.parameters), hook * 1e6, of_step * 1e6, of_hooked * 1e6, of_plain * 1e6);
  return {{"parameters", options.parameters}, {"hook_seconds", hook}, {"step_seconds", of_step},
      {"backward_seconds", of_hooked}, {"backward_without_hooks_seconds", of_plain}};
}

/// As bench_timeline's model of 124M parameters: the head has the embedding's weights.
struct Gpt2Impl : torch::nn::Module {
  explicit Gpt2Impl(const Options& o)
      : tokens(register_module("tokens", torch::nn::Embedding(o.vocabulary, o.width))),
        positions(register_module("positions", torch::nn::Embedding(o.context, o.width))),
        blocks(register_module("blocks", torch::nn::ModuleList())),
        norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({o.width})))) {
    for (int64_t i = 0; i < o.layers; ++i) blocks->push_back(Block(o.width, o.width / 64, 0.0));
    const torch::NoGradGuard no_grad;
    tokens->weight.mul_(0.02);
  }
  torch::Tensor forward(const torch::Tensor& ids) {
    auto x = tokens(ids) + positions(torch::arange(ids.size(1), ids.options()));
    for (const auto& block : *blocks) x = block->as<Block>()->forward(x);
    return torch::linear(norm(x), tokens->weight);
  }
  torch::nn::Embedding tokens, positions;
  torch::nn::ModuleList blocks;
  torch::nn::LayerNorm norm;
};
TORCH_MODULE(Gpt2);

int64_t numel_of(torch::nn::Module& model) {
  int64_t numel = 0;
  for (const auto& parameter : model.parameters()) numel += parameter.numel();
  return numel;
}

nlohmann::json measure_step(const Session& session, const Options& options) {
  torch::manual_seed(0);
  Gpt2 model(options);
  model->to(session.device(), torch::kBFloat16);
  AdamWScheduleFree optimizer(
      *model, session.communicator(), AdamWScheduleFreeOptions(1e-3), ShardingOptions());
  const auto ids = torch::randint(options.vocabulary, {options.batch, options.context + 1},
      torch::TensorOptions(torch::kLong).device(session.device()));
  const auto inputs = ids.slice(1, 0, options.context), targets = ids.slice(1, 1);
  const Stopwatch stopwatch(session.device(), 4);
  std::vector<double> whole, forward, backward, step, host;
  for (int round = -3; round < options.rounds; ++round) {
    synchronize(session.device());
    const double of_host = seconds_of_host([&] {
      stopwatch.note(0);
      optimizer.zero_grad();
      const auto loss =
          torch::nn::functional::cross_entropy(model->forward(inputs).flatten(0, 1), targets.flatten());
      stopwatch.note(1);
      loss.backward();
      stopwatch.note(2);
      optimizer.step();
      stopwatch.note(3);
    });
    synchronize(session.device());
    if (round < 0) continue;  // to warm up
    whole.push_back(stopwatch.seconds(0, 3));
    forward.push_back(stopwatch.seconds(0, 1));
    backward.push_back(stopwatch.seconds(1, 2));
    step.push_back(stopwatch.seconds(2, 3));
    host.push_back(of_host);
  }
  std::printf(
      "step, GPT of %.1fM bfloat16 parameters, %lld tokens: %.2f ms, of which forward %.2f, backward %.2f, "
      "step() %.3f; the host was busy for %.2f ms\n",
      static_cast<double>(numel_of(*model)) / 1e6, static_cast<long long>(options.batch * options.context),
      median(whole) * 1e3, median(forward) * 1e3, median(backward) * 1e3, median(step) * 1e3,
      median(host) * 1e3);
  return {{"parameters", numel_of(*model)}, {"tokens", options.batch * options.context},
      {"step_seconds", median(whole)}, {"forward_seconds", median(forward)},
      {"backward_seconds", median(backward)}, {"update_seconds", median(step)},
      {"host_seconds", median(host)}};
}

int64_t allocated_bytes(torch::Device device, bool peak) {
  if (!device.is_cuda()) return 0;
  const auto all = c10::CachingAllocator::StatType::AGGREGATE;
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
  const auto& bytes = stats.allocated_bytes[static_cast<size_t>(all)];
  return peak ? bytes.peak : bytes.current;
}

/// Of a model that is nearly all parameters, bytes: of the state once it is there, and at the peak of a step.
nlohmann::json memory_of(const Session& session, const Options& options, torch::Dtype dtype) {
  const torch::Device device = session.device();
  torch::empty({1}, device);  // the allocator has no figures before it has allocated
  const int64_t before = allocated_bytes(device, false);
  torch::nn::Sequential model;
  for (int i = 0; i < 8; ++i) {
    model->push_back(
        torch::nn::Linear(torch::nn::LinearOptions(options.memory_width, options.memory_width).bias(false)));
  }
  model->to(device, dtype);
  AdamWScheduleFree optimizer(
      *model, session.communicator(), AdamWScheduleFreeOptions(1e-3), ShardingOptions());
  const auto input = torch::randn({8, options.memory_width}, torch::TensorOptions(device).dtype(dtype));
  const int64_t numel = numel_of(*model);
  const auto y = static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t there = allocated_bytes(device, false) - before;
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
  for (int i = 0; i < 3; ++i) {
    optimizer.zero_grad();
    model->forward(input).square().mean().backward();
    optimizer.step();
  }
  synchronize(device);
  const int64_t peak = allocated_bytes(device, true) - before;
  // y, then z, x and v; in a world of one the gradient stays in .grad.
  const int64_t expected = numel * (y + 12), expected_peak = numel * (2 * y + 12);
  std::printf("memory, %s: %.2f bytes per parameter beside %lld, %.2f at the peak of a step beside %lld\n",
      c10::toString(dtype), static_cast<double>(there) / static_cast<double>(numel),
      static_cast<long long>(y + 12), static_cast<double>(peak) / static_cast<double>(numel),
      static_cast<long long>(2 * y + 12));
  return {{"dtype", c10::toString(dtype)}, {"parameters", numel}, {"bytes", there},
      {"expected_bytes", expected}, {"peak_bytes", peak}, {"expected_peak_bytes", expected_peak}};
}

/// Whether no more is taken than is expected, but for a twentieth: activations, the products' workspace, rounding.
bool fits(const nlohmann::json& memory) {
  constexpr double kMore = 1.05;
  const bool good = memory["bytes"].get<double>() <= kMore * memory["expected_bytes"].get<double>() &&
                    memory["peak_bytes"].get<double>() <= kMore * memory["expected_peak_bytes"].get<double>();
  if (!good) std::printf("FAILED: more than %.2f of what is expected\n", kMore);
  return good;
}

int run(const Session& session, const Options& options) {
  nlohmann::json figures;
  bool passed = true;
  for (const std::string& what : options.what) {
    if (what == "host") figures[what] = measure_host(session, options);
    if (what == "step") figures[what] = measure_step(session, options);
    if (what == "memory") {
      for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
        figures[what].push_back(memory_of(session, options, dtype));
        passed = fits(figures[what].back()) && passed;
      }
    }
    std::fflush(stdout);
  }
  zerosched::testing::write_json(options.json, figures);
  return passed ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("What a step of the optimizer costs one GPU.", "bench_step_gpu");
  app.option_defaults()->always_capture_default()->delimiter(',');
  app.add_option("--what", options.what)->check(CLI::IsMember({"host", "step", "memory"}));
  app.add_option("--device", options.device, "cpu: to see that it runs")
      ->check(CLI::IsMember({"auto", "cuda", "cpu"}));
  app.add_option("--rounds", options.rounds)->check(CLI::PositiveNumber);
  app.add_option("--parameters", options.parameters, "of the host's part")->check(CLI::Range(2, 100000));
  app.add_option("--layers", options.layers)->check(CLI::PositiveNumber);
  app.add_option("--width", options.width, "a multiple of 64")->check(CLI::PositiveNumber);
  app.add_option("--vocabulary", options.vocabulary)->check(CLI::PositiveNumber);
  app.add_option("--context", options.context)->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch, "sequences per step")->check(CLI::PositiveNumber);
  app.add_option("--memory-width", options.memory_width)->check(CLI::PositiveNumber);
  app.add_option("--json", options.json, "file for the figures");
  CLI11_PARSE(app, argc, argv);
  auto session_options = zerosched::SessionOptions().backend("self").device(
      options.device == "cpu" ? at::Device(at::kCPU) : at::Device(at::kCUDA, 0));
  std::optional<Session> session;
  try {
    session.emplace(argc, argv, session_options);
  } catch (const c10::Error& error) {
    std::printf("SKIPPED: %s\n", error.what_without_backtrace());
    return 77;
  }
  try {
    return run(*session, options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_step_gpu: %s\n", error.what());
    return 1;
  }
}
