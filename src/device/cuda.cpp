#include "base/check.h"
#include "device/runtime.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <utility>

#include <dlfcn.h>

namespace zerosched::device {

namespace {

void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // clears it, where it can be cleared: it is reported here
  ZEROSCHED_CHECK(false, "cuda: ", call, " failed: ", cudaGetErrorString(code));
}

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }
cudaEvent_t handle(Event event) { return static_cast<cudaEvent_t>(event.handle); }

at::TensorOptions options(at::ScalarType dtype, int device) {
  return at::TensorOptions().dtype(dtype).device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
}

// Whether this thread's calls leave captures of other threads alone, as begin_thread() has made it.
thread_local bool ignores_captures = false;

// For the calls that a capture of another thread does not allow, in threads that CUDA takes for the program's.
class IgnoreCaptures {
 public:
  IgnoreCaptures() {
    if (!ignores_captures) exchange();
  }
  ~IgnoreCaptures() {
    if (!ignores_captures) exchange();
  }
  IgnoreCaptures(const IgnoreCaptures&) = delete;
  IgnoreCaptures& operator=(const IgnoreCaptures&) = delete;

 private:
  void exchange() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

class Cuda final : public Runtime {
 public:
  int device_count() noexcept override { return c10::cuda::device_count(); }

  std::string why_no_device() override {
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    cudaGetLastError();
    const std::string text = code == cudaSuccess ? "no GPU is visible" : cudaGetErrorString(code);
    return "CUDA finds no GPU (" + text + "); look at nvidia-smi and CUDA_VISIBLE_DEVICES";
  }

  void prepare_tensors() override {
    // Before LibTorch is asked, because it remembers that there was none.
    const bool loaded = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr;
    ZEROSCHED_CHECK(loaded, "cuda: LibTorch's operations on GPUs cannot be loaded: ", dlerror());
    ZEROSCHED_CHECK(at::hasCUDA(),
        "cuda: LibTorch has looked for its operations on GPUs before they were loaded. Construct the Session "
        "before anything else of LibTorch is used (torch::manual_seed looks too), or link the program with "
        "libtorch_cuda.");
  }

  std::string identity(int device) override {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    return std::string(properties.uuid.bytes, sizeof(properties.uuid.bytes));
  }

  at::Device device_of(const at::Tensor& tensor) const override { return tensor.device(); }

  at::Tensor empty(int64_t numel, at::ScalarType dtype, int device) override {
    return at::empty({numel}, options(dtype, device));
  }

  at::Tensor wrap(void* memory, int64_t numel, at::ScalarType dtype, int device,
      std::function<void(void*)> free_memory) override {
    return at::for_blob(memory, {numel})
        .options(options(dtype, device))
        .target_device(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)))
        .deleter(std::move(free_memory))
        .make_tensor();
  }

  Stream current_stream(int device) override {
    return {device, c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream()};
  }

  Stream create_stream(int device) override {
    const DeviceScope scope(*this, device);
    int lowest = 0;
    int highest = 0;
    check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, highest),
        "cudaStreamCreateWithPriority");
    return {device, stream};
  }

  bool is_capturing(Stream stream) override {
    const DeviceScope scope(*this, stream.device);
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t code = cudaStreamIsCapturing(handle(stream), &status);
    // The default stream while another one is captured: what it is given would end up nowhere.
    if (code == cudaErrorStreamCaptureImplicit) {
      cudaGetLastError();
      return true;
    }
    check(code, "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  void destroy_stream(Stream stream) noexcept override { cudaStreamDestroy(handle(stream)); }

  Event create_event(int device) override {
    const DeviceScope scope(*this, device);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return {device, event};
  }

  void destroy_event(Event event) noexcept override { cudaEventDestroy(handle(event)); }

  void record(Event event, Stream stream) override {
    const DeviceScope scope(*this, stream.device);
    check(cudaEventRecord(handle(event), handle(stream)), "cudaEventRecord");
  }

  void wait(Stream stream, Event event) override {
    const DeviceScope scope(*this, stream.device);
    check(cudaStreamWaitEvent(handle(stream), handle(event), 0), "cudaStreamWaitEvent");
  }

  bool query(Event event) override {
    const DeviceScope scope(*this, event.device);
    const IgnoreCaptures ignore;
    const cudaError_t code = cudaEventQuery(handle(event));
    if (code == cudaErrorNotReady) {
      cudaGetLastError();
      return false;
    }
    check(code, "cudaEventQuery");
    return true;
  }

  void synchronize(int device) override {
    const DeviceScope scope(*this, device);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  void release_cached_memory() override { c10::cuda::CUDACachingAllocator::emptyCache(); }

  void copy(void* to, const void* from, int64_t byte_count, Stream stream) override {
    const DeviceScope scope(*this, stream.device);
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(byte_count), cudaMemcpyDefault, handle(stream)),
        "cudaMemcpyAsync");
  }

  void* allocate_pinned(int64_t byte_count) override {
    void* memory = nullptr;
    // Portable: pinned for every device, whichever is current.
    check(cudaHostAlloc(&memory, static_cast<size_t>(byte_count), cudaHostAllocPortable), "cudaHostAlloc");
    return memory;
  }

  void free_pinned(void* memory) noexcept override { cudaFreeHost(memory); }

  void assign(const at::Tensor& to, const at::Tensor& from) override { to.copy_(from); }
  void fill(const at::Tensor& tensor, double value) override { tensor.fill_(value); }
  void add(const at::Tensor& sum, const at::Tensor& term) override { sum.add_(term); }
  void clamp(const at::Tensor& tensor, double low, double high) override { tensor.clamp_(low, high); }
  void sum_of_squares(const at::Tensor& sum, const at::Tensor& tensor) override {
    const at::Tensor wide = tensor.to(at::kDouble);
    sum.copy_(wide.mul(wide).sum());
  }

  void keep(const at::Tensor& tensor) override {
    // Nothing to do for memory that is not the allocator's: whoever wrapped it sees to it.
    c10::cuda::CUDACachingAllocator::recordStream(
        tensor.storage().data_ptr(), c10::cuda::getCurrentCUDAStream(tensor.device().index()));
  }

  at::Tensor to_host(const at::Tensor& tensor) override { return tensor.to(at::kCPU); }
  void from_host(const at::Tensor& to, const at::Tensor& host) override { to.copy_(host); }

  int64_t exchange_stream(Stream stream) override {
    const auto index = static_cast<c10::DeviceIndex>(stream.device);
    const int64_t previous = c10::cuda::getCurrentCUDAStream(index).id();
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromExternal(handle(stream), index));
    return previous;
  }

  // By its number, which tells LibTorch's own streams from others with the same handle.
  void restore_stream(int device, int64_t previous) override {
    c10::cuda::setCurrentCUDAStream(c10::cuda::CUDAStream::unpack3(
        previous, static_cast<c10::DeviceIndex>(device), c10::DeviceType::CUDA));
  }

  int exchange_device(int device) override {
    return c10::cuda::ExchangeDevice(static_cast<c10::DeviceIndex>(device));
  }

  void restore_device(int device) override {
    c10::cuda::MaybeExchangeDevice(static_cast<c10::DeviceIndex>(device));
  }

  void begin_thread(int device) override {
    // First, as the next call makes the context of the current device.
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
    ignores_captures = true;
  }
};

}  // namespace

Runtime& cuda() {
  static auto* runtime = new Cuda;
  return *runtime;
}

}  // namespace zerosched::device
