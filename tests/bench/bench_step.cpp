// Times step() of one process on given gradients:
//   bench_step THREADS STEPS NUMEL...
// One float32 parameter for each NUMEL. Prints the milliseconds of each step, one line each. compare_step.py runs
// this beside the Python package.
#include <zerosched/adamw_schedulefree.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: bench_step THREADS STEPS NUMEL...\n");
    return 2;
  }
  at::set_num_threads(std::atoi(argv[1]));
  const int steps = std::atoi(argv[2]);
  zerosched::NamedParameters parameters;
  for (int i = 3; i < argc; ++i) {
    parameters.emplace_back("p" + std::to_string(i), at::randn({std::atoll(argv[i])}).requires_grad_());
  }
  zerosched::AdamWScheduleFree optimizer({zerosched::ParameterGroup(parameters)},
      zerosched::self_communicator(), zerosched::AdamWScheduleFreeOptions().weight_decay(0.1),
      zerosched::ShardingOptions().overlap_backward(false));
  for (const auto& named : parameters) named.second.mutable_grad() = at::randn_like(named.second);
  for (int step = 0; step < steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    optimizer.step();
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    std::printf("%.6f\n", time.count());
  }
}
