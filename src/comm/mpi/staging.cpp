#include "comm/mpi/staging.h"

#include "comm/mpi/progress.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <utility>

namespace zerosched::detail {

StagingArea::StagingArea(device::Runtime& runtime, int device)
    : runtime_(runtime),
      device_(device),
      to_host_(runtime.create_stream(device)),
      to_device_(runtime.create_stream(device)) {}

StagingArea::~StagingArea() {
  for (const auto& buffer : sizes_) runtime_.free_pinned(buffer.first);
  runtime_.destroy_stream(to_host_);
  runtime_.destroy_stream(to_device_);
}

void StagingArea::begin_thread() {
  using Device = std::pair<device::Runtime*, int>;
  thread_local Device of_thread{nullptr, -1};
  const Device own{&runtime_, device_};
  if (of_thread == own || !Progress::on_thread()) return;
  runtime_.begin_thread(device_);
  of_thread = own;
}

void* StagingArea::take(int64_t byte_count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto found = free_.lower_bound(byte_count); found != free_.end()) {
    void* buffer = found->second;
    free_.erase(found);
    return buffer;
  }
  void* buffer = runtime_.allocate_pinned(std::max<int64_t>(byte_count, 1));
  sizes_.emplace(buffer, byte_count);
  return buffer;
}

void StagingArea::give_back(void* buffer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.emplace(sizes_.at(buffer), buffer);
}

// The stream rules, each applied where it says so.
// 1. The copies to the host come after all that the caller's stream holds at the launch.
// 2. MPI gets the buffers once the host has seen the event behind those copies. As that event is behind the
//    caller's work too, whatever reads or writes the tensors has ended when results are copied back.
// 3. The waiting stream comes after the copies back.
// 4. Tensors and buffers are held until the event behind the copies back has passed.
Staging::Staging(std::shared_ptr<StagingArea> area, std::vector<StagedTensor> tensors)
    : area_(std::move(area)),
      on_host_(area_->runtime().create_event(area_->device())),
      on_device_(area_->runtime().create_event(area_->device())) {
  auto& runtime = area_->runtime();
  runtime.record(on_host_, runtime.current_stream(area_->device()));
  runtime.wait(area_->to_host(), on_host_);  // rule 1
  for (auto& staged : tensors) {
    void* buffer = area_->take(static_cast<int64_t>(staged.tensor.nbytes()));
    if (staged.bytes_in > 0) {
      runtime.copy(static_cast<char*>(buffer) + staged.first_byte_in,
          static_cast<const char*>(staged.tensor.const_data_ptr()) + staged.first_byte_in, staged.bytes_in,
          area_->to_host());
    }
    parts_.push_back({std::move(staged), buffer});
  }
  runtime.record(on_host_, area_->to_host());
}

Staging::~Staging() {
  area_->runtime().destroy_event(on_host_);
  area_->runtime().destroy_event(on_device_);
}

std::vector<at::Tensor> Staging::host_tensors() const {
  std::vector<at::Tensor> tensors;
  for (const auto& part : parts_) {
    const auto& tensor = part.staged.tensor;
    tensors.push_back(
        at::from_blob(part.buffer, tensor.sizes(), at::TensorOptions().dtype(tensor.scalar_type())));
  }
  return tensors;
}

bool Staging::arrived_on_host() {
  area_->begin_thread();
  return area_->runtime().query(on_host_);  // rule 2
}

void Staging::send_back() {
  area_->begin_thread();
  auto& runtime = area_->runtime();
  for (const auto& part : parts_) {
    const auto& tensor = part.staged.tensor;
    if (part.staged.comes_back && tensor.nbytes() > 0) {
      runtime.copy(tensor.data_ptr(), part.buffer, static_cast<int64_t>(tensor.nbytes()), area_->to_device());
    }
  }
  runtime.record(on_device_, area_->to_device());
  sent_back_.store(true, std::memory_order_release);
}

bool Staging::through() {
  area_->begin_thread();
  if (!area_->runtime().query(on_device_)) return false;  // rule 4
  for (const auto& part : parts_) area_->give_back(part.buffer);
  parts_.clear();
  return true;
}

void Staging::wait() {
  auto& runtime = area_->runtime();
  runtime.wait(runtime.current_stream(area_->device()), on_device_);  // rule 3
}

}  // namespace zerosched::detail
