#include "bandwidth.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <stdexcept>

namespace doctor {

namespace {

constexpr int kRepetitions = 5;

/// The slowest rank's time for one call, from a common start.
double seconds_of(zerosched::Communicator& communicator, const std::function<void()>& call) {
  communicator.barrier({"start of a measurement"})->wait();
  const auto start = std::chrono::steady_clock::now();
  call();
  const double mine = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto slowest = at::full({1}, mine, at::kDouble);
  communicator.all_reduce(slowest, zerosched::ReduceOp::max, {"time of a measurement"})->wait();
  return slowest.item<double>();
}

double median_seconds(zerosched::Communicator& communicator, const std::function<void()>& call) {
  seconds_of(communicator, call);  // connects, and touches the memory
  std::vector<double> times;
  for (int i = 0; i < kRepetitions; ++i) times.push_back(seconds_of(communicator, call));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

std::vector<Bandwidth> measure_bandwidth(
    zerosched::Communicator& communicator, at::Device device, int64_t mib) {
  const int64_t ranks = communicator.size();
  const int64_t slice = std::max<int64_t>(mib * (1 << 18) / ranks, 1);
  const auto flat = communicator.allocate(slice * ranks, at::kFloat, device);
  const auto shard = communicator.allocate(slice, at::kFloat, device);
  const int64_t bytes = slice * ranks * 4;
  const auto result = [&](const char* name, double seconds) {
    const double share = static_cast<double>(ranks - 1) / static_cast<double>(ranks);
    const double hosts = communicator.host_count();
    return Bandwidth{name, bytes, seconds, static_cast<double>(bytes) * share / seconds,
        static_cast<double>(bytes) * (hosts - 1) / hosts / seconds};
  };

  std::vector<Bandwidth> results;
  flat.fill_(static_cast<double>(communicator.rank() + 1));
  results.push_back(result("reduce_scatter", median_seconds(communicator, [&] {
    communicator.reduce_scatter(flat, shard, {"reduce-scatter of the doctor"})->wait();
  })));
  const double sum = 0.5 * static_cast<double>(ranks * (ranks + 1));
  if (shard.min().item<double>() != sum || shard.max().item<double>() != sum) {
    throw std::runtime_error(
        "a reduce-scatter gave a wrong sum on rank " + std::to_string(communicator.rank()));
  }
  results.push_back(result("all_gather", median_seconds(communicator, [&] {
    communicator.all_gather(flat, {"all-gather of the doctor"})->wait();
  })));
  return results;
}

}  // namespace doctor
