#pragma once

#include "engine/executor.h"
#include "engine/step_report.h"

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace zerosched::detail {

/// Reports and flags of steps that a device has yet to finish: copied to the host behind the step, and looked at when
/// they are there, so that no step waits for its own.
class LateReports {
 public:
  struct Arrived {
    int64_t step = 0;
    OwnReport own;                     ///< as this rank has sent it
    std::vector<double> final_values;  ///< what it made the step with
    int64_t carrier = -1;              ///< bucket that the report came with
    std::vector<std::byte> report;     ///< for that bucket's codec; empty if the host had it
    bool not_finite = false;           ///< the gradient's norm or the state was not
  };

  explicit LateReports(DeviceExecutor& executor);

  /// For kernels to set: one int32 on the device.
  const at::Tensor& not_finite_flag() const { return flag_; }
  /// Of the step whose kernels are all queued. `report` may be undefined, and `norm`, the GradientNorm of a step that was
  /// to change nothing if it is not finite.
  void send(const at::Tensor& report, const at::Tensor& norm, Arrived what);
  /// Those that are there, from the oldest; `all`: waits for all of them. Never more than four steps are under way: the
  /// host waits for the oldest. While it waits it calls `give_up`, which throws where that is in vain.
  std::vector<Arrived> take(bool all, const std::function<void()>& give_up);
  /// As if no step had been made. Waits for those under way.
  void forget(const std::function<void()>& give_up);

 private:
  struct Pending {
    std::unique_ptr<PinnedBuffer> buffer;
    int64_t report_bytes, norm_bytes;
    Arrived what;
  };

  DeviceExecutor& executor_;
  at::Tensor flag_;
  std::deque<Pending> pending_;
  std::vector<std::unique_ptr<PinnedBuffer>> free_;
};

}  // namespace zerosched::detail
