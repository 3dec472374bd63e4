#include "comm/host_memory.h"

#include "base/check.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <sys/mman.h>

#include <cstdlib>

namespace zerosched::detail {

at::Tensor empty_host_tensor(int64_t numel, at::ScalarType dtype) {
  constexpr size_t kHugePageBytes = size_t{2} << 20;
  const auto options = at::TensorOptions().dtype(dtype).device(at::kCPU);
  const size_t byte_count = static_cast<size_t>(numel) * c10::elementSize(dtype);
  if (byte_count < 2 * kHugePageBytes) return at::empty({numel}, options);
  const size_t rounded = (byte_count + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  void* memory = std::aligned_alloc(kHugePageBytes, rounded);
  ZEROSCHED_CHECK(
      memory != nullptr, "out of memory: cannot allocate ", rounded, " bytes for a communication buffer");
  madvise(memory, rounded, MADV_HUGEPAGE);  // a hint: where it is refused, ordinary pages do
  return at::from_blob(
      memory, {numel}, [](void* p) { std::free(p); }, options);
}

}  // namespace zerosched::detail
