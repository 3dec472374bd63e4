#include "base/check.h"
#include "device/runtime.h"

namespace zerosched::device {

namespace {

constexpr const char* kReason =
    "this zerosched was built without CUDA; build it with -DZEROSCHED_CUDA=ON, or use the CPU";

[[noreturn]] void refuse() { ZEROSCHED_CHECK(false, "cuda: ", kReason); }

class NoCuda final : public Runtime {
 public:
  int device_count() noexcept override { return 0; }
  std::string why_no_device() override { return kReason; }
  void prepare_tensors() override { refuse(); }
  std::string identity(int) override { refuse(); }
  at::Device device_of(const at::Tensor& tensor) const override { return tensor.device(); }
  at::Tensor empty(int64_t, at::ScalarType, int) override { refuse(); }
  at::Tensor wrap(void*, int64_t, at::ScalarType, int, std::function<void(void*)>) override { refuse(); }
  Stream current_stream(int) override { refuse(); }
  Stream create_stream(int) override { refuse(); }
  bool is_capturing(Stream) override { refuse(); }
  void destroy_stream(Stream) noexcept override {}
  Event create_event(int) override { refuse(); }
  void destroy_event(Event) noexcept override {}
  void record(Event, Stream) override { refuse(); }
  void wait(Stream, Event) override { refuse(); }
  bool query(Event) override { refuse(); }
  void synchronize(int) override { refuse(); }
  void release_cached_memory() override { refuse(); }
  void copy(void*, const void*, int64_t, Stream) override { refuse(); }
  void* allocate_pinned(int64_t) override { refuse(); }
  void free_pinned(void*) noexcept override {}
  void assign(const at::Tensor&, const at::Tensor&) override { refuse(); }
  void fill(const at::Tensor&, double) override { refuse(); }
  void add(const at::Tensor&, const at::Tensor&) override { refuse(); }
  void clamp(const at::Tensor&, double, double) override { refuse(); }
  void sum_of_squares(const at::Tensor&, const at::Tensor&) override { refuse(); }
  void keep(const at::Tensor&) override { refuse(); }
  at::Tensor to_host(const at::Tensor&) override { refuse(); }
  void from_host(const at::Tensor&, const at::Tensor&) override { refuse(); }
  int64_t exchange_stream(Stream) override { refuse(); }
  void restore_stream(int, int64_t) override { refuse(); }
  int exchange_device(int) override { refuse(); }
  void restore_device(int) override { refuse(); }
  void begin_thread(int) override { refuse(); }
};

}  // namespace

Runtime& cuda() {
  static auto* runtime = new NoCuda;
  return *runtime;
}

}  // namespace zerosched::device
