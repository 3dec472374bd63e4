#include "engine/parameter_gathers.h"

#include "base/check.h"
#include "engine/phase_timer.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace zerosched::detail {

ParameterGathers::ParameterGathers(const std::vector<at::Tensor>& trained, const FlatParameters& parameters,
    const Layout& layout, Communicator& communicator, Executor& executor, bool hides)
    : parameters_(parameters),
      communicator_(communicator),
      executor_(executor),
      on_host_(executor.device().is_cpu()),
      hides_(hides),
      in_flight_(layout.buckets.size()) {
  for (size_t p = 0; p < trained.size(); ++p) {
    const int64_t bucket = layout.place_of[p].bucket;
    if (bucket >= 0) bucket_of_[trained[p].unsafeGetTensorImpl()] = bucket;
  }
  for (size_t b = 0; b < layout.buckets.size() && hides; ++b) {
    const Bucket& bucket = layout.buckets[b];
    hidden_.push_back(
        communicator.allocate(bucket.numel(layout.world_size), bucket.dtype, executor.device()));
  }
}

void ParameterGathers::launch(const std::vector<int64_t>& buckets, int64_t step) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const at::NoGradGuard no_grad;
  open_.store(0, std::memory_order_release);
  for (const int64_t bucket : buckets) {
    if (hides_) hide(bucket);
    const at::Tensor& flat = hides_ ? hidden_[static_cast<size_t>(bucket)] : parameters_.buffer(bucket);
    in_flight_[static_cast<size_t>(bucket)] = {
        communicator_.all_gather(flat, {"parameters", bucket, step}), {}};
    open_.fetch_add(1, std::memory_order_release);
  }
}

// This rank's slice too, so that a world of one finds what other worlds would.
void ParameterGathers::hide(int64_t bucket) {
  const at::Tensor own = parameters_.slice(bucket, communicator_.rank());
  executor_.assign(
      hidden_[static_cast<size_t>(bucket)].narrow(0, communicator_.rank() * own.numel(), own.numel()), own);
  executor_.fill(parameters_.buffer(bucket), std::numeric_limits<double>::quiet_NaN());
}

// What is copied from where it was hidden is used by whoever enters next, so then a wait is a use as any other.
template <typename Function>
void ParameterGathers::with_lock(const Function& function) {
  if (!may_be_in_flight()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const at::NoGradGuard no_grad;
  const auto use = hides_ ? executor_.enter() : executor_.visit();
  function();
}

void ParameterGathers::wait(at::TensorList tensors) {
  with_lock([&] {
    for (const at::Tensor& tensor : tensors) {
      const auto found = bucket_of_.find(tensor.unsafeGetTensorImpl());
      if (found != bucket_of_.end()) wait_for(found->second);
    }
  });
}

void ParameterGathers::wait_all() {
  with_lock([&] {
    for (size_t b = 0; b < in_flight_.size(); ++b) wait_for(static_cast<int64_t>(b));
  });
}

bool ParameterGathers::are_shown() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !hides_ || std::all_of(in_flight_.begin(), in_flight_.end(), [](const InFlight& gather) {
    return gather.work == nullptr || !gather.waited_in.empty();
  });
}

void ParameterGathers::wait_for(int64_t bucket) {
  InFlight& gather = in_flight_[static_cast<size_t>(bucket)];
  std::vector<device::Stream> waited_in = gather.waited_in;
  if (!gather.work || !executor_.note_in(waited_in)) return;
  const bool is_first = gather.waited_in.empty();
  const std::string written = is_first ? parameters_.written(bucket) : "";
  {
    const PhaseTimer timer(waited_seconds_);
    gather.work->wait();  // rule 7
  }
  gather.waited_in = std::move(waited_in);
  if (is_first && hides_) {
    executor_.assign(parameters_.buffer(bucket), hidden_[static_cast<size_t>(bucket)]);
  }
  if (on_host_) {
    gather.work.reset();
    open_.fetch_sub(1, std::memory_order_release);
  }
  ZEROSCHED_CHECK(written.empty(), "parameter '", written,
      "' was written between step() and ready(), while its new values were on their way "
      "(ShardingOptions::overlap_forward), so that it may hold some of both. Before writing to a parameter "
      "call ready() with it, or with its module.");
}

double ParameterGathers::take_waited_seconds() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(waited_seconds_, 0);
}

}  // namespace zerosched::detail
