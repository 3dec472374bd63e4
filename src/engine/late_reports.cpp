#include "engine/late_reports.h"

#include "base/backoff.h"
#include "kernels/cuda/gradient_norm.h"

#include <cstring>
#include <initializer_list>
#include <utility>

namespace zerosched::detail {
namespace {

constexpr size_t kMostUnderWay = 4;
constexpr int64_t kFlagBytes = sizeof(int32_t);

}  // namespace

LateReports::LateReports(DeviceExecutor& executor) : executor_(executor), flag_(executor.empty(1, at::kInt)) {
  executor_.fill(flag_, 0);
}

void LateReports::send(const at::Tensor& report, const at::Tensor& norm, Arrived what) {
  const auto bytes_of = [](const at::Tensor& tensor) {
    return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0;
  };
  Pending pending{nullptr, bytes_of(report), bytes_of(norm), std::move(what)};
  const int64_t needed = pending.report_bytes + pending.norm_bytes + kFlagBytes;
  for (auto free = free_.begin(); free != free_.end(); ++free) {
    if ((*free)->byte_count() < needed) continue;
    pending.buffer = std::move(*free);
    free_.erase(free);
    break;
  }
  if (!pending.buffer) {
    pending.buffer = std::make_unique<PinnedBuffer>(executor_.runtime(), executor_.device().index(), needed);
  }
  std::byte* memory = pending.buffer->memory();
  for (const at::Tensor* tensor : std::initializer_list<const at::Tensor*>{&report, &norm, &flag_}) {
    const int64_t bytes = bytes_of(*tensor);
    if (bytes == 0) continue;
    pending.buffer->copy(memory, tensor->const_data_ptr(), bytes, executor_.current_stream());
    memory += bytes;
  }
  pending_.push_back(std::move(pending));
}

std::vector<LateReports::Arrived> LateReports::take(bool all, const std::function<void()>& give_up) {
  std::vector<Arrived> arrived;
  while (!pending_.empty()) {
    Pending& first = pending_.front();
    const bool wait = all || pending_.size() >= kMostUnderWay;
    for (Backoff backoff(Backoff::Kind::waiting); wait && !first.buffer->is_copied(); backoff.pause(false))
      give_up();
    if (!first.buffer->is_copied()) break;
    const std::byte* memory = first.buffer->memory();
    first.what.report.assign(memory, memory + first.report_bytes);
    kernels::cuda::GradientNorm norm{};
    int32_t flag = 0;
    std::memcpy(&norm, memory + first.report_bytes, static_cast<size_t>(first.norm_bytes));
    std::memcpy(&flag, memory + first.report_bytes + first.norm_bytes, sizeof(flag));
    first.what.not_finite = flag != 0 || norm.found_inf != 0;
    arrived.push_back(std::move(first.what));
    free_.push_back(std::move(first.buffer));
    pending_.pop_front();
  }
  return arrived;
}

void LateReports::forget(const std::function<void()>& give_up) {
  take(true, give_up);
  executor_.fill(flag_, 0);
}

}  // namespace zerosched::detail
