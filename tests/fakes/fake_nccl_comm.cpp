#include "fakes/fake_nccl_comm.h"

#include "fakes/fake_nccl_exchange.h"

#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

namespace zerosched::testing::fake_comms {

std::mutex mutex;
std::map<ncclComm_t, std::unique_ptr<ncclComm>> comms;
std::string first_misuse;

namespace {

using Flag = std::shared_ptr<std::atomic<bool>>;

constexpr int kPollsInProgress = 2;
constexpr auto kLater = std::chrono::milliseconds(1000);

std::atomic<int> blocked_calls{0}, generation{0};

FakeNccl& fake() { return FakeNccl::instance(); }

// Blocks, without `mutex`, until the effect has come, the communicator is aborted, or the test is over.
ncclResult_t block(const Flag& aborted, const std::function<bool()>& effect) {
  ++blocked_calls;
  const int began = generation;
  ncclResult_t result = ncclInProgress;
  while (result == ncclInProgress) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (*aborted || generation != began) {
        *aborted = true;
        effect();  // lets go of what it waits for
        result = ncclInternalError;
      } else if (effect()) {
        result = ncclSuccess;
      }
    }
    if (result == ncclInProgress) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  --blocked_calls;
  return result;
}

ncclComm_t add_comm(ncclComm comm) {
  auto owned = std::make_unique<ncclComm>(std::move(comm));
  const ncclComm_t added = owned.get();
  comms[added] = std::move(owned);
  ++fake().live_comms;
  return added;
}

std::function<bool()> hello_of(ncclComm& comm) {
  auto hello = std::make_shared<Exchange>(comm.rank, comm.size, comm.number, comm.launched++, comm.aborted);
  return [hello] { return hello->step(); };
}

// A call that makes a communicator of the library's: it is there once all ranks have come.
ncclResult_t make_blocking(ncclComm_t* out, ncclComm comm, bool never) {
  const auto hello = hello_of(comm);
  const ncclResult_t result = block(comm.aborted, never ? [] { return false; } : hello);
  if (result != ncclSuccess) return result;
  const std::lock_guard<std::mutex> lock(mutex);
  *out = add_comm(std::move(comm));
  return ncclSuccess;
}

void remove(ncclComm_t comm) {
  *comm->aborted = true;  // kernels that are left end
  if (comm->split_aborted != nullptr) *comm->split_aborted = true;
  comms.erase(comm);
  --fake().live_comms;
}

}  // namespace

ncclResult_t misuse(const std::string& what) {
  if (first_misuse.empty()) first_misuse = what;
  return ncclInvalidUsage;
}

bool alive(ncclComm_t comm) { return comms.count(comm) != 0; }

void end_blocked_calls() {
  ++generation;
  while (blocked_calls > 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

ncclResult_t effect_of(ncclComm_t comm, std::function<bool()> effect) {
  if (comm->effect) return misuse("a call while another is in progress");
  if (comm->blocking) {
    effect();
    return ncclSuccess;
  }
  comm->effect = std::move(effect);
  comm->polls_left = kPollsInProgress;
  return ncclInProgress;
}

ncclResult_t init_rank_config(ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  auto& script = fake().script;
  fake().runtime->touch_current("ncclCommInitRankConfig");
  ncclComm comm;
  comm.rank = rank;
  comm.size = size;
  std::memcpy(&comm.number, id.internal, sizeof(comm.number));
  comm.numbers_of_family = std::make_shared<int>(comm.number);
  comm.blocking = !script.calls_are_in_progress;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (config->blocking != 1) return misuse("a communicator that is not asked to block");
    if (script.init_fails_at_once) return ncclSystemError;
    if (!comm.blocking) {
      auto hello = hello_of(comm);
      *out = add_comm(std::move(comm));
      return effect_of(*out, std::move(hello));
    }
  }
  if (script.init_fails_later) {
    std::this_thread::sleep_for(kLater);
    return ncclRemoteError;
  }
  return make_blocking(out, std::move(comm), script.init_never_completes);
}

ncclResult_t split(ncclComm_t parent, int color, int key, ncclComm_t* out, ncclConfig_t* config) {
  fake().runtime->touch_current("ncclCommSplit");
  ncclComm comm;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!alive(parent)) return misuse("ncclCommSplit after the communicator was freed");
    if (color != 0 || key != parent->rank) return misuse("a split that is no duplicate");
    if (config != nullptr && config->splitShare == 1) comm.aborted = parent->aborted;
    comm.rank = parent->rank;
    comm.size = parent->size;
    comm.number = ++*parent->numbers_of_family;
    comm.numbers_of_family = parent->numbers_of_family;
    comm.blocking = parent->blocking;
    parent->split_aborted = comm.aborted;
    ++fake().splits;
    if (!comm.blocking) {
      auto hello = hello_of(comm);
      return effect_of(parent, [hello = std::move(hello), comm = std::move(comm), out] {
        if (!hello()) return false;
        *out = add_comm(comm);
        return true;
      });
    }
  }
  const ncclResult_t result = make_blocking(out, std::move(comm), fake().script.split_never_completes);
  const std::lock_guard<std::mutex> lock(mutex);
  if (alive(parent)) parent->split_aborted = nullptr;
  return result;
}

ncclResult_t get_async_error(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommGetAsyncError after the communicator was freed");
  if (fake().script.async_error) comm->error = ncclRemoteError;
  if (comm->effect && comm->error == ncclSuccess) {
    if (--comm->polls_left <= 0 && comm->effect()) comm->effect = nullptr;
  }
  *state = comm->error != ncclSuccess ? comm->error : comm->effect ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t finalize(ncclComm_t comm) {
  fake().runtime->touch_current("ncclCommFinalize");
  Flag aborted;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!alive(comm)) return misuse("ncclCommFinalize after the communicator was freed");
    comm->finalized = true;
    const bool never = fake().script.finalize_never_completes;
    if (!never || !comm->blocking) return effect_of(comm, [never] { return !never; });
    aborted = comm->aborted;
  }
  return block(aborted, [] { return false; });
}

ncclResult_t destroy(ncclComm_t comm) {
  fake().runtime->touch_current("ncclCommDestroy");
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommDestroy after the communicator was freed");
  if (!comm->finalized) return misuse("ncclCommDestroy before ncclCommFinalize was through");
  ++fake().destroys;
  remove(comm);
  return ncclSuccess;
}

ncclResult_t abort(ncclComm_t comm) {
  fake().runtime->touch_current("ncclCommAbort");
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!alive(comm)) return misuse("ncclCommAbort after the communicator was freed");
    ++fake().aborts;
    if (!fake().script.kernels_ignore_aborts) {
      remove(comm);
      return ncclSuccess;
    }
  }
  return block(std::make_shared<std::atomic<bool>>(false), [] { return false; });
}

}  // namespace zerosched::testing::fake_comms
