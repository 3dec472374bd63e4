#pragma once

#include <zerosched/communicator.h>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace doctor {

struct Bandwidth {
  std::string collective;
  int64_t bytes = 0;   ///< of the whole float32 tensor
  double seconds = 0;  ///< median over repetitions of the slowest rank's time
  /// Bytes per second that each rank sends, and receives: (N-1)/N of the tensor in `seconds`.
  double bytes_per_second = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Bandwidth, collective, bytes, seconds, bytes_per_second)

/// Times reduce-scatter and all-gather, and throws if a sum is wrong. Collective.
std::vector<Bandwidth> measure_bandwidth(
    zerosched::Communicator& communicator, at::Device device, int64_t mib);

}  // namespace doctor
