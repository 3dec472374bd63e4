#pragma once

#include <cstdint>

namespace zerosched::testing {

/// How long things take on a cluster of equal GPUs, in seconds and bytes per second. It knows nothing of what two things
/// that run at the same time take from each other.
struct MachineModel {
  int gpus = 1;  ///< one process each

  // What a call costs the host.
  double launch_call = 5e-6;      ///< of a kernel
  double tensor_call = 10e-6;     ///< one of LibTorch's operations on the device
  double allocation_call = 1e-6;  ///< from LibTorch's cache
  double event_call = 0.5e-6;     ///< record, wait
  double query_call = 1e-6;       ///< asking an event, with the change of the capture mode around it
  double nccl_call = 8e-6;
  double copy_call = 4e-6;  ///< between pinned memory and the device

  double kernel_start = 2e-6;   ///< of the device: what the shortest kernel takes
  double memory_bandwidth = 0;  ///< read and written, together
  double link_bandwidth = 0;    ///< between host and device
  double flops = 0;             ///< of a transformer's layers, as they are reached in training
  int64_t memory_bytes = 0;

  double collective_start = 0;  ///< alpha of t = alpha + bytes / bus_bandwidth * (n - 1) / n
  double bus_bandwidth = 0;     ///< of reduce-scatter and all-gather, bytes of the whole tensor

  /// Of a kernel that moves so many bytes.
  double kernel(double bytes) const { return kernel_start + bytes / memory_bandwidth; }
  /// Of a reduce-scatter or an all-gather of a tensor of so many bytes. Nothing for one GPU.
  double collective(double bytes) const;
};

/// H100s, eight a node over NVLink, nodes over 400 Gbit/s for each GPU. 1 to 1,024.
MachineModel h100(int gpus);

}  // namespace zerosched::testing
