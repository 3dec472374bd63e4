// How much of the reduce-scatter is hidden under backward. Started with mpirun, at least two ranks.
//
// Steps with overlap_backward(true), whose reduce-scatters run beside backward, and with
// overlap_backward(false), where all run in step(), take turns. The difference of their times is what was
// hidden; the time of the same reduce-scatters alone is what there was to hide. On a GPU the model has many more buckets
// than there are buffers, and a backward that takes longer than the reduce-scatters.
#include "support/median.h"

#include <zerosched/adamw_schedulefree.h>
#include <zerosched/session.h>

#include <torch/cuda.h>
#include <torch/nn.h>
#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace {

using zerosched::testing::median;

constexpr int64_t kBucketBytes = int64_t{25} << 20;

struct Options {
  int64_t width = 0, layers = 0, batch = 0;  // 0: as fits the device
  int rounds = 15;
  std::string device = "auto", comm = "auto", dtype;

  void fit(bool gpu) {
    if (width == 0) width = gpu ? 4096 : 1024;
    if (layers == 0) layers = gpu ? 24 : 12;
    if (batch == 0) batch = gpu ? 8192 : 256;
    if (dtype.empty()) dtype = gpu ? "bfloat16" : "float32";
  }
  torch::Dtype parameter_dtype() const { return dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat32; }
};

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
    model->to(session.device(), options.parameter_dtype());
    input = torch::randn({options.batch, options.width},
        torch::TensorOptions(session.device()).dtype(options.parameter_dtype()));
    optimizer = std::make_unique<zerosched::AdamWScheduleFree>(*model, session.communicator(),
        zerosched::AdamWScheduleFreeOptions(1e-3),
        zerosched::ShardingOptions().overlap_backward(overlap).bucket_bytes(kBucketBytes));
    optimizer->train();
  }

  void step() {
    forward_and_backward();
    launched_in_backward = optimizer->communicator()->traffic().reduce_scatter.calls - launched;
    optimizer->step();
    in_a_step = optimizer->communicator()->traffic().reduce_scatter.calls - launched;
    launched += in_a_step;
  }

  void forward_and_backward() {
    optimizer->zero_grad();
    model->forward(input).square().mean().backward();
  }

  torch::nn::Sequential model;
  torch::Tensor input;
  std::unique_ptr<zerosched::AdamWScheduleFree> optimizer;
  int64_t launched = 0;                             ///< reduce-scatters, in all steps
  int64_t launched_in_backward = 0, in_a_step = 0;  ///< of the last step
};

/// Ranks that share a GPU take turns on it, which is no overlap. Collective.
bool ranks_share_gpus(const zerosched::Session& session) {
  if (!session.device().is_cuda()) return false;
  const auto most = torch::full({1}, session.communicator()->local_rank(), torch::kLong);
  session.communicator()->all_reduce(most, zerosched::ReduceOp::max)->wait();
  return most.item<int64_t>() >= static_cast<int64_t>(torch::cuda::device_count());
}

int measure(const zerosched::Session& session, Options options) {
  options.fit(session.device().is_cuda());
  if (session.world_size() < 2) {
    std::printf("SKIPPED: one rank reduces nothing; start at least two with mpirun\n");
    return 77;
  }
  if (ranks_share_gpus(session)) {
    if (session.rank() == 0) std::printf("SKIPPED: ranks share a GPU, so nothing runs beside anything\n");
    return 77;
  }
  const Clock clock(session);
  Training with(session, options, true), without(session, options, false);
  int64_t numel = 0;
  for (const auto& parameter : with.model->parameters()) numel += parameter.numel();
  // As large as a bucket, as often as the model needs.
  const auto communicator = session.communicator()->duplicate();
  const int64_t size = session.world_size();
  const auto dtype = options.parameter_dtype();
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t bucket = kBucketBytes / element_bytes / size * size;
  const auto flat = communicator->allocate(bucket, dtype, session.device()).zero_();
  const auto shard = torch::zeros({bucket / size}, torch::TensorOptions(session.device()).dtype(dtype));
  int64_t reduced = 0;
  const auto reduce_all = [&] {
    reduced = 0;
    for (; reduced < numel; reduced += bucket) communicator->reduce_scatter(flat, shard)->wait();
  };
  std::vector<double> overlapped, apart, alone, computing;
  for (int round = -3; round < options.rounds; ++round) {
    const double times[] = {clock.time([&] { with.step(); }), clock.time([&] { without.step(); }),
        clock.time(reduce_all), clock.time([&] { without.forward_and_backward(); })};
    if (round < 0) continue;  // to warm up
    overlapped.push_back(times[0]);
    apart.push_back(times[1]);
    alone.push_back(times[2]);
    computing.push_back(times[3]);
  }
  if (session.rank() == 0) {
    const double hidden = median(apart) - median(overlapped);
    std::printf("%lld parameters, %d ranks, %s on %s, medians of %d rounds\n", static_cast<long long>(numel),
        session.world_size(), session.communicator()->backend(), session.device().str().c_str(),
        options.rounds);
    std::printf(
        "forward and backward alone   %8.2f ms\n"
        "step, reduced under backward %8.2f ms\nstep, reduced after backward %8.2f ms\n"
        "the reduce-scatters alone    %8.2f ms, of which %.0f%% hidden\n",
        median(computing) * 1e3, median(overlapped) * 1e3, median(apart) * 1e3, median(alone) * 1e3,
        100 * hidden / median(alone));
    const double bytes = static_cast<double>(reduced * element_bytes);
    std::printf(
        "%.1f MB reduced, bus bandwidth %.2f GB/s; %lld of %lld reduce-scatters left during backward\n",
        bytes / 1e6, bytes * static_cast<double>(size - 1) / static_cast<double>(size) / median(alone) / 1e9,
        static_cast<long long>(with.launched_in_backward), static_cast<long long>(with.in_a_step));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("How much of the reduce-scatter is hidden under backward.", "bench_overlap");
  app.option_defaults()->always_capture_default();
  const auto size_of = [&app](const char* name, int64_t& value, const char* gpu, const char* cpu) {
    const std::string defaults = std::string("by default ") + gpu + " on a GPU, " + cpu + " on a CPU";
    app.add_option(name, value, defaults)->check(CLI::PositiveNumber)->default_str("");
  };
  size_of("--width", options.width, "4096", "1024");
  size_of("--layers", options.layers, "24", "12");
  size_of("--batch", options.batch, "8192 rows per rank", "256");
  app.add_option(
         "--dtype", options.dtype, "of the parameters; by default bfloat16 on a GPU, float32 on a CPU")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
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
