#pragma once

#include "comm/nccl/api.h"
#include "fakes/fake_runtime.h"

#include <atomic>
#include <string>

namespace zerosched::testing {

/// What the fake does otherwise than NCCL that works, on this rank.
struct NcclScript {
  int version = 22809;
  bool unique_id_fails = false;
  bool init_fails_at_once = false;
  bool init_fails_later = false;
  bool init_never_completes = false;
  bool split_never_completes = false;
  bool calls_are_in_progress = false;  ///< when they return, as with NCCL_COMM_BLOCKING=0 in the environment
  bool mem_alloc_fails = false;
  std::atomic<int> mem_allocs_to_fail{0};  ///< the next so many
  bool deregistering_fails = false;
  bool windows_fail = false;      ///< registering one is an error
  bool windows_are_null = false;  ///< registering one gives none
  bool finalize_never_completes = false;
  std::atomic<bool> collectives_fail{false};
  std::atomic<bool> collectives_hang{false};
  std::atomic<bool> async_error{false};
  std::atomic<bool> kernels_ignore_aborts{false};  ///< so an abort blocks, for it waits for them
};

/// NCCL on tensors of a FakeRuntime, over MPI: a collective is an operation in a fake stream that polls MPI
/// when the stream runs. Ranks in different collectives wait for ever, as with NCCL, and calls that wait for other
/// ranks or the device block for as long as these take; or say ncclInProgress and have done nothing until they have
/// been polled twice.
class FakeNccl {
 public:
  /// For the whole life of the process, as the table has plain functions. Collective: MPI_COMM_WORLD is
  /// duplicated.
  static FakeNccl& instance();

  const detail::NcclApi& api() const { return api_; }
  /// Without what NCCL had not before 2.18.
  detail::NcclApi old_api() const;

  NcclScript script;
  FakeRuntime* runtime = nullptr;  ///< what collectives run on; set by each test

  std::atomic<int> live_comms{0}, live_windows{0}, live_allocations{0}, aborts{0}, destroys{0}, splits{0};
  /// How collectives were called that worked in place, and how often.
  std::atomic<int> in_place{0}, out_of_place{0};
  /// The first call that NCCL does not allow, or empty.
  std::string misuse() const;

  /// As for a new process, but for what is still alive: threads that earlier tests have left in calls leave these with
  /// an error.
  void reset(FakeRuntime& new_runtime);

 private:
  FakeNccl();
  detail::NcclApi api_;
};

}  // namespace zerosched::testing
