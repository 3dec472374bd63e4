#include "timeline/timed_wire.h"

#include <algorithm>
#include <string>

namespace zerosched::testing {
namespace {

class WireWork final : public Work {
 public:
  WireWork(std::shared_ptr<JumpingClock> clock, double end) : clock_(std::move(clock)), end_(end) {}
  void wait() override { clock_->jump_to(end_); }
  bool done() const noexcept override { return clock_->now() >= end_; }

 private:
  std::shared_ptr<JumpingClock> clock_;
  double end_;
};

}  // namespace

void JumpingClock::jump_to(double time) { jumped_ = std::max(jumped_, time - since_start()); }

std::shared_ptr<Work> TimedWire::begin(double began, const WireCost& cost, const at::Tensor& flat) {
  const auto bytes = static_cast<double>(flat.nbytes());
  free_at_ = std::max(began, free_at_) + cost.seconds(bytes);
  if (costs_.shares_cores) clock_->jump_to(clock_->now() + bytes * cost.core_per_byte);
  return std::make_shared<WireWork>(clock_, free_at_);
}

std::shared_ptr<Work> TimedWire::do_reduce_scatter(
    const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) {
  const double began = clock_->now();
  MirroredCommunicator::do_reduce_scatter(flat, shard_out, label);
  return begin(began, costs_.reduce_scatter, flat);
}

// All ranks have this one's parameters, and moving the others' would cost time that is counted already.
std::shared_ptr<Work> TimedWire::do_all_gather(const at::Tensor& flat, CollectiveLabel label) {
  if (std::string(label.what) != "parameters") return MirroredCommunicator::do_all_gather(flat, label);
  return begin(clock_->now(), costs_.all_gather, flat);
}

}  // namespace zerosched::testing
