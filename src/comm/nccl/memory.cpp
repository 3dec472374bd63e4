#include "comm/nccl/memory.h"

#include "comm/agree.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

namespace zerosched::detail {

namespace {

// Windows start on pages of this size (NCCL_WIN_REQUIRED_ALIGNMENT), so they end there too.
constexpr size_t kWindowAlignment = 4096;

}  // namespace

struct NcclMemory::Block {
  char* memory = nullptr;
  size_t byte_count = 0;
  void* window = nullptr;
  std::vector<device::Stream> streams;  // under mutex_
  std::vector<device::Event> events;    // once retired
};

NcclMemory::NcclMemory(const NcclApi& api, device::Runtime& runtime, int device,
    std::shared_ptr<NcclComm> comm, bool symmetric_memory)
    : api_(api),
      runtime_(runtime),
      device_(device),
      comm_(std::move(comm)),
      windows_work_(symmetric_memory && api.has_windows()),
      events_(runtime, device) {}

// Nobody reaps any more, and no collective is left to wait for: a wait for the device ends.
NcclMemory::~NcclMemory() {
  if (retired_.empty()) return;
  try {
    runtime_.synchronize(device_);
  } catch (const c10::Error&) {
    return;  // a device that is lost has lost its memory too
  }
  for (const auto& block : retired_) free_block(*block);
}

at::Tensor NcclMemory::allocate(
    int64_t numel, at::ScalarType dtype, Communicator& host, const NcclComm::GiveUp& give_up) {
  // Ranks may have different libraries, or options.
  if (numel == 0 || !on_all_ranks(host, windows_work_, "NCCL windows work")) {
    return runtime_.empty(numel, dtype, device_);
  }
  const size_t byte_count = static_cast<size_t>(numel) * c10::elementSize(dtype);
  const auto block = allocate_block(
      (byte_count + kWindowAlignment - 1) / kWindowAlignment * kWindowAlignment, host, give_up);
  if (block == nullptr) return runtime_.empty(numel, dtype, device_);
  block->streams.push_back(runtime_.current_stream(device_));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    live_[block->memory] = block;
  }
  return runtime_.wrap(block->memory, numel, dtype, device_,
      [owner = shared_from_this(), block](void*) { owner->retire(block); });
}

void* NcclMemory::allocate_on_device(size_t byte_count, int rank) {
  void* memory = nullptr;
  if (api_.mem_alloc(&memory, byte_count) == ncclSuccess) return memory;
  // LibTorch keeps what it has freed, and gives it to none but its own tensors.
  runtime_.release_cached_memory();
  if (api_.mem_alloc(&memory, byte_count) == ncclSuccess) return memory;
  TORCH_WARN("zerosched: nccl: rank ", rank, ": ncclMemAlloc has no ", byte_count, " bytes on cuda:", device_,
      " even though LibTorch's cache is empty, so every rank takes ordinary memory, which "
      "NCCL copies; SessionOptions().symmetric_memory(false) asks for that");
  return nullptr;
}

std::shared_ptr<NcclMemory::Block> NcclMemory::allocate_block(
    size_t byte_count, Communicator& host, const NcclComm::GiveUp& give_up) {
  auto block = std::make_shared<Block>();
  block->byte_count = byte_count;
  try {
    const device::DeviceScope scope(runtime_, device_);
    block->memory = static_cast<char*>(allocate_on_device(byte_count, host.rank()));
    windows_work_ = on_all_ranks(host, block->memory != nullptr, "memory from NCCL");
    if (windows_work_) {
      try {
        block->window = comm_->register_window(block->memory, byte_count, give_up);
      } catch (const c10::Error&) {
        give_up();  // if the communicator has failed, that is the error
      }
      windows_work_ = on_all_ranks(host, block->window != nullptr, "window on memory from NCCL");
    }
  } catch (...) {
    if (block->memory != nullptr) free_block(*block);
    throw;
  }
  if (windows_work_) return block;
  if (block->memory != nullptr) free_block(*block);
  return nullptr;
}

NcclMemory::Blocks NcclMemory::blocks_of(const std::vector<at::Tensor>& tensors) const {
  Blocks blocks;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const at::Tensor& tensor : tensors) {
    const auto* address = static_cast<const char*>(tensor.const_data_ptr());
    auto block = live_.upper_bound(address);
    if (block == live_.begin()) continue;
    --block;
    if (address < block->first + block->second->byte_count) blocks.push_back(block->second);
  }
  return blocks;
}

void NcclMemory::used_in(const Blocks& blocks, device::Stream stream) {
  if (blocks.empty()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& block : blocks) {
    auto& streams = block->streams;
    if (std::find(streams.begin(), streams.end(), stream) == streams.end()) streams.push_back(stream);
  }
}

// Called by whoever drops the last reference to a tensor: never blocks.
void NcclMemory::retire(const std::shared_ptr<Block>& block) noexcept {
  try {
    used_in({block}, runtime_.current_stream(device_));
    const std::lock_guard<std::mutex> lock(mutex_);
    live_.erase(block->memory);
    for (const device::Stream stream : block->streams) {
      block->events.push_back(events_.take());
      runtime_.record(block->events.back(), stream);
    }
    retired_.push_back(block);
  } catch (const c10::Error&) {
    // The process is on its way out and CUDA gone before it; or the device is lost.
  }
}

bool NcclMemory::reap() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (freeing_ && !freeing_->ended()) return true;
  freeing_.reset();
  Blocks through;
  for (auto block = retired_.begin(); block != retired_.end();) {
    const auto next = std::next(block);
    try {
      const auto& events = (*block)->events;
      if (std::all_of(
              events.begin(), events.end(), [this](device::Event event) { return runtime_.query(event); })) {
        through.push_back(*block);
        retired_.erase(block);
      }
    } catch (const c10::Error&) {
      retired_.erase(block);
    }
    block = next;
  }
  if (through.empty()) return !retired_.empty();
  // The driver waits for kernels that run, and one may be a collective that another rank does not come to.
  try {
    freeing_.emplace(runtime_, device_, [self = shared_from_this(), through] {
      for (const auto& block : through) self->free_block(*block);
    });
  } catch (const std::exception&) {
    retired_.insert(retired_.end(), through.begin(), through.end());  // no thread to be had now
  }
  return true;
}

bool NcclMemory::is_freeing() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return freeing_ && !freeing_->ended();
}

void NcclMemory::free_block(const Block& block) noexcept {
  try {
    const device::DeviceScope scope(runtime_, device_);
    for (const device::Event event : block.events) events_.give_back(event);
    // NCCL takes whatever comes to lie at the address of a window for that window.
    if (block.window != nullptr && !comm_->deregister_window(block.window)) return;
    api_.mem_free(block.memory);
  } catch (const c10::Error&) {
    // As in retire().
  }
}

}  // namespace zerosched::detail
