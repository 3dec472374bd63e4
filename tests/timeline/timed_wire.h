#pragma once

#include "timeline/mirrored_communicator.h"

#include <chrono>
#include <memory>

namespace zerosched::testing {

/// Time as this process would see it if its waits for others were as long as they are said to be: it goes on as real time
/// does, and a wait is a jump.
class JumpingClock {
 public:
  /// Seconds.
  double now() const { return since_start() + jumped_; }
  void jump_to(double time);

 private:
  using Clock = std::chrono::steady_clock;
  double since_start() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  Clock::time_point start_ = Clock::now();
  double jumped_ = 0;
};

/// t = start + bytes of the whole tensor * per_byte, of reduce-scatter or all-gather; and what of the process's cores
/// it takes meanwhile.
struct WireCost {
  double start = 0, per_byte = 0;  ///< s, s/byte
  double core_per_byte = 0;        ///< core seconds per byte
  double seconds(double bytes) const { return start + bytes * per_byte; }
};

/// A network that takes time and moves nothing, for ranks on CPUs: one collective after the other, in the background. What
/// they take of a core that the process computes with makes that slower.
class TimedWire final : public MirroredCommunicator {
 public:
  struct Costs {
    WireCost reduce_scatter, all_gather;
    bool shares_cores = true;
  };
  TimedWire(int size, const Costs& costs, std::shared_ptr<JumpingClock> clock)
      : MirroredCommunicator(size), costs_(costs), clock_(std::move(clock)) {}
  std::shared_ptr<Communicator> duplicate() override {
    return std::make_shared<TimedWire>(size(), costs_, clock_);
  }

 private:
  std::shared_ptr<Work> do_reduce_scatter(
      const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) override;
  std::shared_ptr<Work> do_all_gather(const at::Tensor& flat, CollectiveLabel label) override;
  std::shared_ptr<Work> begin(double began, const WireCost& cost, const at::Tensor& flat);

  const Costs costs_;
  std::shared_ptr<JumpingClock> clock_;
  double free_at_ = 0;
};

}  // namespace zerosched::testing
