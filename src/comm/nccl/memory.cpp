#include "comm/nccl/memory.h"

#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

#include <utility>

namespace zerosched::detail {

namespace {

// Windows start on pages of this size (NCCL_WIN_REQUIRED_ALIGNMENT), so they end there too.
constexpr size_t kWindowAlignment = 4096;

bool all_ranks(Communicator& host, bool yes, const char* what) {
  auto verdict = at::full({1}, yes ? 1 : 0, at::kByte);
  host.all_reduce(verdict, ReduceOp::min, {what})->wait();
  return *verdict.const_data_ptr<uint8_t>() != 0;
}

}  // namespace

NcclMemory::NcclMemory(
    const NcclApi& api, device::Runtime& runtime, int device, std::shared_ptr<NcclComm> comm)
    : api_(api),
      runtime_(runtime),
      device_(device),
      comm_(std::move(comm)),
      windows_work_(api.has_windows()) {}

// Nobody reaps any more, and no collective is left to wait for: a wait for the device ends.
NcclMemory::~NcclMemory() {
  if (retired_.empty()) return;
  try {
    runtime_.synchronize(device_);
  } catch (const c10::Error&) {
    return;  // a device that is lost has lost its memory too
  }
  for (const auto& block : retired_) free_block(block);
}

at::Tensor NcclMemory::allocate(
    int64_t numel, at::ScalarType dtype, Communicator& host, const NcclComm::GiveUp& give_up) {
  // Ranks may have different libraries.
  if (numel == 0 || !all_ranks(host, windows_work_, "NCCL windows work")) {
    return runtime_.empty(numel, dtype, device_);
  }
  const size_t byte_count = static_cast<size_t>(numel) * c10::elementSize(dtype);
  const Block block = allocate_block(
      (byte_count + kWindowAlignment - 1) / kWindowAlignment * kWindowAlignment, host, give_up);
  if (block.memory == nullptr) return runtime_.empty(numel, dtype, device_);
  return runtime_.wrap(block.memory, numel, dtype, device_,
      [owner = shared_from_this(), window = block.window](void* freed) { owner->retire(freed, window); });
}

NcclMemory::Block NcclMemory::allocate_block(
    size_t byte_count, Communicator& host, const NcclComm::GiveUp& give_up) {
  Block block{nullptr, nullptr, {}};
  try {
    const device::DeviceScope scope(runtime_, device_);
    if (api_.mem_alloc(&block.memory, byte_count) != ncclSuccess) block.memory = nullptr;
    windows_work_ = all_ranks(host, block.memory != nullptr, "memory from NCCL");
    if (windows_work_) {
      try {
        block.window = comm_->register_window(block.memory, byte_count, give_up);
      } catch (const c10::Error&) {
        give_up();  // if the communicator has failed, that is the error
      }
      windows_work_ = all_ranks(host, block.window != nullptr, "window on memory from NCCL");
    }
  } catch (...) {
    if (block.memory != nullptr) free_block(block);
    throw;
  }
  if (!windows_work_ && block.memory != nullptr) {
    free_block(block);
    block.memory = nullptr;
  }
  return block;
}

// Called by whoever drops the last reference to a tensor: never blocks.
void NcclMemory::retire(void* memory, void* window) noexcept {
  try {
    const device::Event event = runtime_.create_event(device_);
    const std::lock_guard<std::mutex> lock(mutex_);
    retired_.push_back({memory, window, event});
    runtime_.record(event, runtime_.current_stream(device_));
  } catch (const c10::Error&) {
    // The process is on its way out and CUDA gone before it; or the device is lost.
  }
}

bool NcclMemory::reap() noexcept {
  std::list<Block> through;
  bool left = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto block = retired_.begin(); block != retired_.end();) {
      const auto next = std::next(block);
      try {
        if (runtime_.query(block->event)) through.splice(through.end(), retired_, block);
      } catch (const c10::Error&) {
        retired_.erase(block);
      }
      block = next;
    }
    left = !retired_.empty();
  }
  for (const auto& block : through) free_block(block);
  return left;
}

void NcclMemory::free_block(const Block& block) noexcept {
  try {
    const device::DeviceScope scope(runtime_, device_);
    if (block.event.handle != nullptr) runtime_.destroy_event(block.event);
    if (block.window != nullptr) comm_->deregister_window(block.window);
    api_.mem_free(block.memory);
  } catch (const c10::Error&) {
    // As in retire().
  }
}

}  // namespace zerosched::detail
