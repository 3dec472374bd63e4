// Whether the timeline's way of counting is right, where it can be measured: ranks on CPUs. Started with mpirun.
//
// Measures what reduce-scatters and all-gathers of the size of a bucket take, then trains over that network, and over one
// that takes as much time by the model and moves nothing (timed_wire.h). All ranks do each of these at the same time, so
// that what they compute takes as long in both. Prints seconds per step, measured and predicted, as JSON.
#include "support/median.h"
#include "timeline/timed_wire.h"

#include <zerosched/adamw_schedulefree.h>
#include <zerosched/session.h>

#include <torch/nn.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include <sys/resource.h>

namespace zerosched::testing {
namespace {

struct Options {
  int64_t width = 1024, layers = 18, batch = 128, bucket_mebibytes = 4;
  int steps = 5, rounds = 3;
};

double core_seconds(int who) {
  rusage usage{};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Of the threads beside this one, which move data.
double core_seconds_of_others() { return core_seconds(RUSAGE_SELF) - core_seconds(RUSAGE_THREAD); }

/// Several at once, as in training; the median of a few tries, each as long as the slowest rank's.
WireCost measure(Communicator& communicator, int64_t bytes,
    const std::function<std::shared_ptr<Work>(const at::Tensor& flat, const at::Tensor& shard)>& launch) {
  constexpr int kTries = 5, kAtOnce = 4;
  const auto seconds = [&](int64_t size, double* cores) {
    const int64_t numel = size / 4 / communicator.size() * communicator.size();
    std::vector<at::Tensor> flats, shards;
    for (int i = 0; i < kAtOnce; ++i) {
      flats.push_back(communicator.allocate(numel, at::kFloat, at::kCPU).zero_());
      shards.push_back(at::zeros({numel / communicator.size()}));
    }
    std::vector<double> times;
    double core = 0;
    for (int t = 0; t <= kTries; ++t) {
      communicator.barrier()->wait();
      const JumpingClock clock;
      const double before = core_seconds_of_others();
      std::vector<std::shared_ptr<Work>> works;
      for (int i = 0; i < kAtOnce; ++i)
        works.push_back(launch(flats[static_cast<size_t>(i)], shards[static_cast<size_t>(i)]));
      for (const auto& work : works) work->wait();
      at::Tensor time = at::full({1}, clock.now(), at::kDouble);
      if (t > 0) core += (core_seconds_of_others() - before) / kAtOnce / kTries;
      communicator.all_reduce(time, ReduceOp::max)->wait();
      if (t > 0) times.push_back(time.item<double>() / kAtOnce);
    }
    *cores = core;
    return median(times);
  };
  double core_small = 0, core_large = 0;
  const double small = seconds(bytes / 16, &core_small), large = seconds(bytes, &core_large);
  WireCost cost;
  cost.per_byte = (large - small) / (static_cast<double>(bytes) * 15 / 16);
  if (cost.per_byte <= 0)
    cost.per_byte = large / static_cast<double>(bytes);  // on a machine that is not idle
  cost.start = std::max(0.0, small - cost.per_byte * static_cast<double>(bytes) / 16);
  cost.core_per_byte = core_large / static_cast<double>(bytes);
  return cost;
}

/// A stack of layers and the optimizer that trains it.
class Training {
 public:
  Training(const std::shared_ptr<Communicator>& communicator, const Options& options) {
    torch::manual_seed(0);
    for (int64_t i = 0; i < options.layers; ++i) {
      model_->push_back(torch::nn::Linear(options.width, options.width));
      model_->push_back(torch::nn::ReLU());
    }
    input_ = torch::randn({options.batch, options.width});
    optimizer_ = std::make_unique<AdamWScheduleFree>(*model_, communicator, AdamWScheduleFreeOptions(1e-4),
        ShardingOptions().bucket_bytes(options.bucket_mebibytes << 20));
    optimizer_->train();
  }
  void step() {
    optimizer_->zero_grad();
    model_->forward(input_).square().mean().backward();
    optimizer_->step();
  }

 private:
  torch::nn::Sequential model_;
  torch::Tensor input_;
  std::unique_ptr<AdamWScheduleFree> optimizer_;
};

/// Seconds of each of the steps, after one to warm up.
std::vector<double> seconds_of_steps(Training& training, int steps, const JumpingClock& clock) {
  std::vector<double> times;
  for (int step = 0; step <= steps; ++step) {
    const double begin = clock.now();
    training.step();
    if (step > 0) times.push_back(clock.now() - begin);
  }
  return times;
}

int check(const Session& session, const Options& options) {
  const int size = session.world_size();
  if (size < 2) {
    std::printf("SKIPPED: one rank has no network; start at least two with mpirun\n");
    return 77;
  }
  const auto communicator = session.communicator()->duplicate();
  const int64_t bytes = options.bucket_mebibytes << 20;
  TimedWire::Costs costs;
  costs.reduce_scatter = measure(*communicator, bytes, [&](const at::Tensor& flat, const at::Tensor& shard) {
    return communicator->reduce_scatter(flat, shard);
  });
  costs.all_gather = measure(*communicator, bytes,
      [&](const at::Tensor& flat, const at::Tensor&) { return communicator->all_gather(flat); });
  const auto clock = std::make_shared<JumpingClock>();
  Training real(communicator, options), model(std::make_shared<TimedWire>(size, costs, clock), options);
  std::vector<double> measured, predicted;
  for (int round = 0; round < options.rounds; ++round) {
    communicator->barrier()->wait();
    const auto a = seconds_of_steps(real, options.steps, JumpingClock());
    communicator->barrier()->wait();
    const auto b = seconds_of_steps(model, options.steps, *clock);
    measured.insert(measured.end(), a.begin(), a.end());
    predicted.insert(predicted.end(), b.begin(), b.end());
  }
  // The ranks of a step wait for the slowest; those of the model do not know of each other.
  at::Tensor slowest = at::full({1}, median(predicted), at::kDouble);
  communicator->all_reduce(slowest, ReduceOp::max)->wait();
  if (session.rank() == 0) {
    const auto text_of = [](const WireCost& cost) {
      return nlohmann::json{{"start_s", cost.start}, {"bytes_per_s", 1 / cost.per_byte},
          {"core_s_per_byte", cost.core_per_byte}};
    };
    const double ratio = slowest.item<double>() / median(measured);
    std::printf("%s\n",
        nlohmann::json{{"ranks", size}, {"measured_step_s", median(measured)},
            {"predicted_step_s", slowest.item<double>()}, {"ratio", ratio},
            {"reduce_scatter", text_of(costs.reduce_scatter)}, {"all_gather", text_of(costs.all_gather)}}
            .dump()
            .c_str());
  }
  return 0;
}

}  // namespace
}  // namespace zerosched::testing

int main(int argc, char** argv) {
  using namespace zerosched::testing;
  Options options;
  CLI::App app("Whether steps take what the timeline's model of a network says.", "check_wire");
  app.option_defaults()->always_capture_default();
  app.add_option("--width", options.width)->check(CLI::PositiveNumber);
  app.add_option("--layers", options.layers)->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch, "rows per rank")->check(CLI::PositiveNumber);
  app.add_option("--bucket", options.bucket_mebibytes, "MiB")->check(CLI::PositiveNumber);
  app.add_option("--steps", options.steps, "of a round")->check(CLI::PositiveNumber);
  app.add_option("--rounds", options.rounds, "measured and predicted by turns")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const zerosched::Session session(argc, argv, zerosched::SessionOptions().device(at::kCPU));
  return check(session, options);
}
