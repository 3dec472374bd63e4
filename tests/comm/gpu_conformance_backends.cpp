// NCCL and host-staged MPI on real GPUs.
#include "comm/conformance.h"
#include "comm/nccl/nccl_backend.h"
#include "device/runtime.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/nccl_communicator.h>

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

namespace zerosched::testing {

namespace {

at::Device own_device() {
  const int count = std::max(device::cuda().device_count(), 1);
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(world_rank() % count));
}

Backend on_gpu(const char* name, std::function<std::shared_ptr<Communicator>()> make) {
  Backend backend{name, std::move(make)};
  backend.device = own_device();
  backend.to_device = [](const at::Tensor& tensor) { return tensor.to(own_device()); };
  backend.to_host = [](const at::Tensor& tensor) { return tensor.cpu(); };
  return backend;
}

}  // namespace

std::string why_skip_conformance(const Backend&) {
  auto& cuda = device::cuda();
  if (cuda.device_count() == 0) return cuda.why_no_device();
  cuda.prepare_tensors();
  return {};
}

std::vector<Backend> conformance_backends() {
  std::vector<Backend> all{on_gpu("mpi_staged", [] { return world()->duplicate(); })};
  // Ranks may share a GPU with MPI only.
  const int count = device::cuda().device_count();
  if (count == 0 || count >= world_size()) {
    all.push_back(on_gpu("nccl", [] { return nccl_communicator(world(), own_device(), 60); }));
    all.push_back(
        on_gpu("nccl_duplicate", [] { return nccl_communicator(world(), own_device(), 60)->duplicate(); }));
  } else if (world_rank() == 0) {
    std::printf("%d ranks on %d GPUs: NCCL is not tested\n", world_size(), count);
  }
  return all;
}

}  // namespace zerosched::testing
