#include "comm/mpi/local_ranks.h"

#include "comm/mpi/tags.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <utility>

#include <unistd.h>

namespace zerosched::detail {

namespace {

static_assert(std::atomic<int64_t>::is_always_lock_free, "signs are seen by other processes");

// As many as there are tags: no two collectives in flight have the same.
constexpr int64_t kFields = kTagsInTurn;
constexpr int64_t kSigns = 2;

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

}  // namespace

int64_t LocalRanks::board_bytes(int count) {
  return count * kSigns * kFields * static_cast<int64_t>(sizeof(std::atomic<int64_t>));
}

LocalRanks::LocalRanks(std::shared_ptr<SharedMapping> board, int position, int count)
    : board_(std::move(board)), position_(position), count_(count) {}

std::atomic<int64_t>& LocalRanks::field(int position, Sign sign, int64_t sequence) const {
  auto* fields = reinterpret_cast<std::atomic<int64_t>*>(board_->data());
  return fields[(position * kSigns + static_cast<int64_t>(sign)) * kFields + sequence % kFields];
}

// Fields begin as 0, and collectives with 0.
void LocalRanks::sign(Sign sign, int64_t sequence) {
  field(position_, sign, sequence).store(sequence + 1, std::memory_order_release);
}

bool LocalRanks::has_signed(int position, Sign sign, int64_t sequence) const {
  return field(position, sign, sequence).load(std::memory_order_acquire) > sequence;
}

bool LocalRanks::all_have_signed(Sign sign, int64_t sequence) const {
  for (int position = 0; position < count_; ++position) {
    if (!has_signed(position, sign, sequence)) return false;
  }
  return true;
}

int64_t LocalRanks::stride_of(int64_t byte_count) {
  // Whole pages, as each rank gives its own part back: 64 KiB on some machines.
  static const int64_t page_bytes = std::max<int64_t>(::sysconf(_SC_PAGESIZE), 1);
  const int64_t page = byte_count < 2 * kHugePageBytes ? page_bytes : kHugePageBytes;
  return (byte_count + page - 1) / page * page;
}

at::Tensor LocalRanks::tensor_in(
    std::shared_ptr<SharedMapping> window, int64_t stride, int64_t numel, at::ScalarType dtype) {
  char* part = window->data() + position_ * stride;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    windows_[part] = {std::move(window), stride};
  }
  return at::from_blob(
      part, {numel},
      [ranks = shared_from_this()](void* memory) { ranks->forget(static_cast<char*>(memory)); },
      at::TensorOptions().dtype(dtype).device(at::kCPU));
}

void LocalRanks::forget(const char* part) noexcept {
  Window window;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = windows_.find(part);
    window = std::move(found->second);
    windows_.erase(found);
  }
  window.mapping->discard(position_ * window.stride, window.stride);
}

int64_t LocalRanks::stride_at(const at::Tensor& tensor) const {
  const auto* data = static_cast<const char*>(tensor.const_data_ptr());
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = windows_.upper_bound(data);
  if (found == windows_.begin()) return 0;
  --found;
  const Window& window = found->second;
  return data + tensor.nbytes() <= found->first + window.stride ? window.stride : 0;
}

}  // namespace zerosched::detail
