#pragma once

#include "fakes/fake_nccl.h"

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

// What NCCL's header leaves open.
struct ncclComm {
  int number = 0;  // the same on every rank
  // The last number that one of those split from each other was given.
  std::shared_ptr<int> numbers_of_family;
  int rank = 0, size = 1;
  bool blocking = true;
  int64_t launched = 0;
  std::shared_ptr<std::atomic<bool>> aborted = std::make_shared<std::atomic<bool>>(false);
  std::shared_ptr<std::atomic<bool>> split_aborted;  // of the one that is being made by splitting this one
  // A call in progress: how many polls until it takes effect, and what that is. False: not yet.
  int polls_left = 0;
  std::function<bool()> effect;
  ncclResult_t error = ncclSuccess;
  bool finalized = false;
};

namespace zerosched::testing {

/// The communicators of the fake NCCL, and how they are made and freed.
namespace fake_comms {

inline constexpr int kMostSplits = 100;  ///< of one family: its numbers

extern std::mutex mutex;  ///< of all that the fake knows
extern std::map<ncclComm_t, std::unique_ptr<ncclComm>> comms;
extern std::string first_misuse;

/// What NCCL does not allow: remembered, and the result of the call.
ncclResult_t misuse(const std::string& what);
bool alive(ncclComm_t comm);
/// What a call does on a communicator: at once, or when it has been polled. `mutex` is held.
ncclResult_t effect_of(ncclComm_t comm, std::function<bool()> effect);
/// Has threads that tests have left in calls leave them.
void end_blocked_calls();

// As those of NCCL.
ncclResult_t init_rank_config(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config);
ncclResult_t split(ncclComm_t parent, int color, int key, ncclComm_t* out, ncclConfig_t* config);
ncclResult_t get_async_error(ncclComm_t comm, ncclResult_t* state);
ncclResult_t finalize(ncclComm_t comm);
ncclResult_t destroy(ncclComm_t comm);
ncclResult_t abort(ncclComm_t comm);

}  // namespace fake_comms

}  // namespace zerosched::testing
