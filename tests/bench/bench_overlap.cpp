// How much of the reduce-scatter is hidden under backward. Started with mpirun, at least two ranks.
//
// Steps with overlap_backward(true), whose reduce-scatters run beside backward, and with
// overlap_backward(false), where all run in step(), take turns. The difference of their times is what was
// hidden; the time of the same reduce-scatters alone is what there was to hide.
#include <zerosched/adamw_schedulefree.h>
#include <zerosched/session.h>

#include <torch/cuda.h>
#include <torch/nn.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace {

constexpr int64_t kBucketBytes = int64_t{25} << 20;

struct Options {
  int64_t width = 1024, layers = 12, batch = 256;
  int rounds = 15;
  std::string device = "auto", comm = "auto";
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Clock {
 public:
  explicit Clock(const zerosched::Session& session) : session_(session) {}
  /// Seconds until the device is done with what `work` has queued, once all ranks are here.
  double time(const std::function<void()>& work) const {
    synchronize();
    session_.communicator()->barrier()->wait();
    const auto start = std::chrono::steady_clock::now();
    work();
    synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  void synchronize() const {
    if (session_.device().is_cuda()) torch::cuda::synchronize(session_.device().index());
  }
  const zerosched::Session& session_;
};

/// A stack of layers and the optimizer that trains it.
struct Training {
  Training(const zerosched::Session& session, const Options& options, bool overlap) {
    torch::manual_seed(0);
    for (int64_t i = 0; i < options.layers; ++i) {
      model->push_back(torch::nn::Linear(options.width, options.width));
      model->push_back(torch::nn::ReLU());
    }
    model->to(session.device());
    input = torch::randn({options.batch, options.width}, session.device());
    optimizer = std::make_unique<zerosched::AdamWScheduleFree>(*model, session.communicator(),
        zerosched::AdamWScheduleFreeOptions(1e-3),
        zerosched::ShardingOptions().overlap_backward(overlap).bucket_bytes(kBucketBytes));
    optimizer->train();
  }

  void step() {
    optimizer->zero_grad();
    model->forward(input).square().mean().backward();
    optimizer->step();
  }

  torch::nn::Sequential model;
  torch::Tensor input;
  std::unique_ptr<zerosched::AdamWScheduleFree> optimizer;
};

int measure(const zerosched::Session& session, const Options& options) {
  if (session.world_size() < 2) {
    std::printf("SKIPPED: one rank reduces nothing; start at least two with mpirun\n");
    return 77;
  }
  const Clock clock(session);
  Training with(session, options, true), without(session, options, false);
  int64_t numel = 0;
  for (const auto& parameter : with.model->parameters()) numel += parameter.numel();
  // As large as a bucket, as often as the model needs.
  const auto communicator = session.communicator()->duplicate();
  const int64_t size = session.world_size();
  const int64_t bucket = kBucketBytes / 4 / size * size;
  const auto flat = communicator->allocate(bucket, torch::kFloat32, session.device()).zero_();
  const auto shard = torch::zeros({bucket / size}, session.device());
  const auto reduce_all = [&] {
    for (int64_t left = numel; left > 0; left -= bucket) communicator->reduce_scatter(flat, shard)->wait();
  };
  std::vector<double> overlapped, apart, alone;
  for (int round = -3; round < options.rounds; ++round) {
    const double times[] = {
        clock.time([&] { with.step(); }), clock.time([&] { without.step(); }), clock.time(reduce_all)};
    if (round < 0) continue;  // to warm up
    overlapped.push_back(times[0]);
    apart.push_back(times[1]);
    alone.push_back(times[2]);
  }
  if (session.rank() == 0) {
    const double hidden = median(apart) - median(overlapped);
    std::printf("%lld parameters, %d ranks, %s on %s, medians of %d rounds\n", static_cast<long long>(numel),
        session.world_size(), session.communicator()->backend(), session.device().str().c_str(),
        options.rounds);
    std::printf(
        "step, reduced under backward %8.2f ms\nstep, reduced after backward %8.2f ms\n"
        "the reduce-scatters alone    %8.2f ms, of which %.0f%% hidden\n",
        median(overlapped) * 1e3, median(apart) * 1e3, median(alone) * 1e3, 100 * hidden / median(alone));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("How much of the reduce-scatter is hidden under backward.", "bench_overlap");
  app.option_defaults()->always_capture_default();
  app.add_option("--width", options.width)->check(CLI::PositiveNumber);
  app.add_option("--layers", options.layers)->check(CLI::PositiveNumber);
  app.add_option("--batch", options.batch, "rows per rank")->check(CLI::PositiveNumber);
  app.add_option("--rounds", options.rounds)->check(CLI::PositiveNumber);
  app.add_option("--device", options.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--comm", options.comm)->check(CLI::IsMember({"auto", "nccl", "mpi"}));
  CLI11_PARSE(app, argc, argv);
  auto session_options = zerosched::SessionOptions().backend(options.comm);
  if (options.device != "auto") session_options.device(options.device == "cuda" ? at::kCUDA : at::kCPU);
  std::optional<zerosched::Session> session;
  try {
    session.emplace(argc, argv, session_options);
  } catch (const c10::Error& error) {
    // No GPU, or fewer than NCCL needs. What goes wrong later is a failure.
    std::printf("SKIPPED: %s\n", error.what_without_backtrace());
    return 77;
  }
  return measure(*session, options);
}
