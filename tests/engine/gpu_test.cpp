// The engine on a GPU: the bits of the CPU, with hooks in two streams.
#include "device/runtime.h"
#include "engine/device_training.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/nccl_communicator.h>

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>

namespace zerosched {
namespace {

using testing::Job;
using testing::Outcome;

enum class Transport { host, nccl };

at::Device own_device() {
  return at::Device(
      at::kCUDA, static_cast<c10::DeviceIndex>(testing::world_rank() % device::cuda().device_count()));
}

class GpuTrainer final : public testing::Trainer {
 public:
  explicit GpuTrainer(Transport transport)
      : transport_(transport), guard_(own_device()), side_(c10::cuda::getStreamFromPool()) {}

 private:
  std::shared_ptr<Communicator> communicator() override {
    return transport_ == Transport::nccl ? nccl_communicator(testing::world(), own_device(), 60)
                                         : testing::world()->duplicate();
  }
  at::Tensor place(const at::Tensor& value) override { return value.to(own_device()); }
  at::Tensor to_host(const at::Tensor& tensor) override { return tensor.cpu(); }
  // Backward runs in the stream of forward, and accumulates a gradient where the parameter was first used.
  std::shared_ptr<void> forward_of(int64_t parameter) override {
    if (parameter % 2 == 0) return nullptr;
    return std::make_shared<c10::cuda::CUDAStreamGuard>(side_);
  }
  at::Tensor make_gradient(const at::Tensor& value, int64_t) override { return value.to(own_device()); }

  Transport transport_;
  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream side_;
};

std::vector<Transport> transports() {
  // Ranks may share a GPU over MPI only.
  if (device::cuda().device_count() < testing::world_size()) return {Transport::host};
  return {Transport::host, Transport::nccl};
}

// The norm is summed in another order than the CPU's, and so is what was clipped to it.
void expect_near(const Outcome& gpu, const Outcome& host) {
  ASSERT_EQ(gpu.norms.size(), host.norms.size());
  for (size_t i = 0; i < host.norms.size(); ++i) {
    if (std::isfinite(host.norms[i])) {
      EXPECT_NEAR(gpu.norms[i], host.norms[i], 1e-12 * host.norms[i]);
    } else {
      EXPECT_FALSE(std::isfinite(gpu.norms[i]));
    }
  }
}

TEST(EngineOnGpu, TrainsToTheBitsOfTheCpu) {
  auto& cuda = device::cuda();
  if (cuda.device_count() == 0) GTEST_SKIP() << cuda.why_no_device();
  cuda.prepare_tensors();
  const std::vector<Job> all = testing::jobs();
  for (size_t j = 0; j < all.size(); ++j) {
    const Outcome host = testing::on_host(all[j]);
    for (const Transport transport : transports()) {
      SCOPED_TRACE("job " + std::to_string(j) + (transport == Transport::nccl ? " nccl" : " host"));
      Outcome gpu = GpuTrainer(transport).run(all[j]);
      expect_near(gpu, host);
      if (all[j].max_grad_norm) {
        for (const auto& [name, y] : host.state.at("y")) {
          EXPECT_TRUE(at::allclose(gpu.state.at("y").at(name), y, 1e-6, 1e-7)) << name;
        }
        continue;
      }
      gpu.norms = host.norms;
      testing::expect_same_bits(gpu, host);
    }
  }
}

}  // namespace
}  // namespace zerosched
