#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>

namespace doctor {

/// Of a collective.
struct Bandwidth {
  std::string collective;
  int64_t bytes = 0;   ///< of the whole float32 tensor
  double seconds = 0;  ///< median over repetitions of the slowest rank's time
  /// Bytes per second that each rank sends, and receives: (N-1)/N of the tensor in `seconds`.
  double bytes_per_second = 0;
  /// Bytes per second that each host sends to others, and receives: (H-1)/H of the tensor in `seconds`. 0: over MPI there
  /// is one host, or the transport is another.
  double host_bytes_per_second = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(
    Bandwidth, collective, bytes, seconds, bytes_per_second, host_bytes_per_second)

/// A plain TCP connection between two hosts, both ways at once: what the network gives to anyone.
struct Stream {
  std::string from, to;  ///< hosts; empty if all ranks are on one
  std::string error;     ///< why it could not be measured; empty if it was
  std::string address;   ///< of `from`
  /// Each way.
  double bytes_per_second = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Stream, from, to, error, address, bytes_per_second)

}  // namespace doctor
