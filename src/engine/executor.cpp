#include "engine/executor.h"

#include <ATen/ops/empty.h>

namespace zerosched::detail {

at::Tensor HostExecutor::empty(int64_t numel, at::ScalarType dtype) {
  return at::empty({numel}, at::TensorOptions().dtype(dtype));
}

void HostExecutor::assign(const at::Tensor& to, const at::Tensor& from) { to.copy_(from); }
void HostExecutor::fill(const at::Tensor& tensor, double value) { tensor.fill_(value); }
// What of a module is not trained may be on a device all the same.
at::Tensor HostExecutor::to_host(const at::Tensor& tensor) { return tensor.to(at::kCPU); }
void HostExecutor::add(const at::Tensor& sum, const at::Tensor& term) { sum.add_(term); }

DeviceExecutor::DeviceExecutor(device::Runtime& runtime, int device)
    : runtime_(runtime),
      device_(device),
      made_in_(runtime.current_stream(device)),
      last_(made_in_),
      event_(runtime.create_event(device)) {}

DeviceExecutor::~DeviceExecutor() { runtime_.destroy_event(event_); }

at::Device DeviceExecutor::device() const {
  return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device_));
}

at::Tensor DeviceExecutor::empty(int64_t numel, at::ScalarType dtype) {
  return runtime_.empty(numel, dtype, device_);
}

// Rules 1 and 8. The last stream came after the one before it, and so on, so it stands for all.
void DeviceExecutor::follow(device::Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stream.handle == last_.handle) return;
  runtime_.record(event_, last_);
  runtime_.wait(stream, event_);
  last_ = stream;
}

std::unique_ptr<device::DeviceScope> DeviceExecutor::enter() {
  auto scope = std::make_unique<device::DeviceScope>(runtime_, device_);
  follow(current_stream());
  return scope;
}

at::Tensor DeviceExecutor::to_host(const at::Tensor& tensor) {
  return runtime_.device_of(tensor).is_cpu() ? tensor : runtime_.to_host(tensor);
}

void DeviceExecutor::from_host(const at::Tensor& to, const at::Tensor& host) {
  if (runtime_.device_of(to).is_cpu()) {
    to.copy_(host);
  } else {
    runtime_.from_host(to, host);
  }
}

void DeviceExecutor::leave() { follow(made_in_); }

}  // namespace zerosched::detail
