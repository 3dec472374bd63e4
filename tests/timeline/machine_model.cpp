#include "timeline/machine_model.h"

#include <algorithm>
#include <cmath>

namespace zerosched::testing {
namespace {

constexpr int kGpusPerNode = 8;

// nccl-tests: about 32 us for 8 GPUs and 2.4 ms for 512, as a ring with so much a hop has.
constexpr double kHop = 4.6e-6;
// nccl-tests, reduce-scatter of large tensors: 360 GB/s on one node and up to 4, 260 GB/s on 128.
constexpr double kMostBandwidth = 360e9, kLeastBandwidth = 260e9;
constexpr double kNodesAtMost = 4, kNodesAtLeast = 128;

double bus_bandwidth(int gpus) {
  const double nodes = std::max(1.0, static_cast<double>(gpus) / kGpusPerNode);
  const double part =
      std::clamp(std::log2(nodes / kNodesAtMost) / std::log2(kNodesAtLeast / kNodesAtMost), 0.0, 1.0);
  return kMostBandwidth + part * (kLeastBandwidth - kMostBandwidth);
}

}  // namespace

double MachineModel::collective(double bytes) const {
  if (gpus == 1) return 0;
  return collective_start + bytes / bus_bandwidth * (gpus - 1) / gpus;
}

MachineModel h100(int gpus) {
  MachineModel model;
  model.gpus = gpus;
  model.memory_bandwidth = 2.7e12;  // what the update reaches in a step, bench_step_gpu on an H100
  model.link_bandwidth = 50e9;      // PCIe 5 x16, what of its 64 GB/s copies reach
  model.flops = 0.45 * 790e12;      // of a bf16 product of 8192 cubed, what training reaches: 40 to 50 %
  model.memory_bytes = int64_t{80} << 30;
  model.collective_start = kHop * (gpus - 1);
  model.bus_bandwidth = bus_bandwidth(gpus);
  return model;
}

}  // namespace zerosched::testing
