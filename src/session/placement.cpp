#include "session/placement.h"

#include "base/check.h"
#include "comm/agree.h"
#include "comm/placement.h"

#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

namespace zerosched::detail {

namespace {

at::Device choose_device(const Communicator& root, const SessionOptions& options, device::Runtime& runtime) {
  const int count = runtime.device_count();
  const bool needs_gpu = options.backend() == "nccl";
  if (!options.device()) {
    ZEROSCHED_CHECK(
        count > 0 || !needs_gpu, "session: the backend \"nccl\" needs a GPU, but ", runtime.why_no_device());
    if (count == 0) return at::kCPU;
    return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device_of_local_rank(root, runtime)));
  }
  at::Device device = *options.device();
  if (device.is_cpu()) {
    ZEROSCHED_CHECK(
        !needs_gpu, "session: the backend \"nccl\" moves CUDA tensors, but the device is the CPU");
    return device;
  }
  ZEROSCHED_CHECK(count > 0, "session: the device is ", device, ", but ", runtime.why_no_device());
  if (!device.has_index())
    device.set_index(static_cast<c10::DeviceIndex>(device_of_local_rank(root, runtime)));
  ZEROSCHED_CHECK(device.index() < count, "session: the device is ", device, ", but this rank sees ", count,
      " GPUs, cuda:0 to cuda:", count - 1);
  return device;
}

// The extreme over all ranks.
int64_t reduced(Communicator& root, int64_t value, ReduceOp op) {
  auto tensor = at::full({1}, value, at::kLong);
  root.all_reduce(tensor, op, {"devices of the session"})->wait();
  return *tensor.const_data_ptr<int64_t>();
}

bool nccl_fits(Communicator& root, at::Device device, device::Runtime& runtime) {
  const int64_t on_gpu = device.is_cuda() ? 1 : 0;
  const bool all = reduced(root, on_gpu, ReduceOp::min) == 1;
  const bool any = reduced(root, on_gpu, ReduceOp::max) == 1;
  ZEROSCHED_CHECK(all || !any,
      "session: some ranks see a GPU and some do not; name the device that all are to use "
      "(SessionOptions().device(at::kCPU)), or start ranks where there are GPUs");
  if (!any) return false;
  const std::string shared = shared_device(root, runtime, device.index());
  if (shared.empty()) return true;
  if (root.rank() == 0) {
    TORCH_WARN("zerosched: ", shared,
        ", which NCCL does not allow, so gradients travel through host memory over MPI; start "
        "no more ranks on a node than it has GPUs");
  }
  return false;
}

}  // namespace

SessionPlacement place_session(const std::shared_ptr<Communicator>& root, const SessionOptions& options,
    device::Runtime& runtime, const MakeNccl& make_nccl) {
  at::Device device = at::kCPU;
  agree_on(*root, [&] {
    device = choose_device(*root, options, runtime);
    if (!device.is_cuda()) return;
    runtime.prepare_tensors();
    // For good: at::kCUDA is the rank's own GPU from now on, and nothing gets a context on the first one by accident.
    runtime.exchange_device(device.index());
  });
  // Alone, there is nothing to move; a world of one that asks for NCCL gets it.
  const bool nccl = options.backend() == "nccl" ||
                    (options.backend() == "auto" && root->size() > 1 && nccl_fits(*root, device, runtime));
  return {device, nccl ? make_nccl(device) : root};
}

}  // namespace zerosched::detail
