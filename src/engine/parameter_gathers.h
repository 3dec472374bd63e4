#pragma once

#include "device/runtime.h"
#include "engine/executor.h"
#include "engine/flat_parameters.h"
#include "layout/layout.h"

#include <zerosched/communicator.h>

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace zerosched::detail {

/// The all-gathers of y that step() leaves in flight, with ShardingOptions::overlap_forward. Thread-safe, because hooks
/// wait on the threads of backward.
///
/// On the CPU a bucket is waited for once, by the host. On a device each stream waits for itself.
///
/// Of autograd's versions: FlatParameters::mark_written() comes before launch(), and a gather's own writes leave no
/// version. So a graph that was recorded before the step is stale and fails, as after any step. One that is recorded
/// after it saves the version that stays until the next step: it holds y if its parameters were waited for before,
/// whatever arrives in others meanwhile. If they were not, no version tells, which is what `hides` is for. And a version
/// that has changed by the time of the first wait is somebody else's write, of which a gather may have undone a part.
class ParameterGathers {
 public:
  /// `trained`: by the layout's numbers. `hides`: as ShardingOptions::check_ready says, and then this is collective
  /// (allocates from the communicator). All that is given by reference must outlive this.
  ParameterGathers(const std::vector<at::Tensor>& trained, const FlatParameters& parameters,
      const Layout& layout, Communicator& communicator, Executor& executor, bool hides);

  /// Once this rank's slices are written, and the last launch has been waited for. Collective.
  void launch(const std::vector<int64_t>& buckets, int64_t step);

  /// False: wait() has nothing to do. Always true on a device, where the next stream may be the first to wait, or one that
  /// is being captured and has to be refused.
  bool may_be_in_flight() const { return !on_host_ || open_.load(std::memory_order_acquire) > 0; }
  /// Has this thread, or its stream, come after the gathers of the buckets of these tensors; of those that are not
  /// trained here there are none. Throws what Work::wait() does, and, once, if somebody has written a parameter of the
  /// bucket since launch(). Local.
  void wait(at::TensorList tensors);
  void wait_all();
  /// Whether parameters hold y, as far as somebody has waited; false only of those that `hides` hides.
  bool are_shown();

  /// Seconds that the host was blocked in either since this was last called.
  double take_waited_seconds();

 private:
  struct InFlight {
    std::shared_ptr<Work> work;
    std::vector<device::Stream> waited_in;
  };

  template <typename Function>
  void with_lock(const Function& function);
  void wait_for(int64_t bucket);
  void hide(int64_t bucket);

  const FlatParameters& parameters_;
  Communicator& communicator_;
  Executor& executor_;
  const bool on_host_, hides_;
  std::unordered_map<const c10::TensorImpl*, int64_t> bucket_of_;
  std::vector<at::Tensor> hidden_;  ///< if `hides`, by bucket: where y is until somebody waits for it
  std::mutex mutex_;
  std::vector<InFlight> in_flight_;  ///< under mutex_, by bucket
  std::atomic<int64_t> open_{0};     ///< on the CPU: how many are yet to be waited for
  double waited_seconds_ = 0;        ///< under mutex_
};

}  // namespace zerosched::detail
