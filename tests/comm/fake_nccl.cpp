#include "comm/fake_nccl.h"

#include "comm/fake_nccl_exchange.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <thread>
#include <utility>

#include <mpi.h>

using zerosched::testing::Exchange;
using zerosched::testing::FakeNccl;

using Flag = std::shared_ptr<std::atomic<bool>>;

// What NCCL's header leaves open.
struct ncclComm {
  int number = 0;  // the same on every rank
  std::shared_ptr<int>
      numbers_of_family;  // the last number that one of those split from each other was given
  int rank = 0, size = 1;
  bool blocking = true;
  int64_t launched = 0;
  Flag aborted = std::make_shared<std::atomic<bool>>(false);
  Flag split_aborted;  // of the one that is being made by splitting this one
  // A call in progress: how many polls until it takes effect, and what that is. False: not yet.
  int polls_left = 0;
  std::function<bool()> effect;
  ncclResult_t error = ncclSuccess;
  bool finalized = false;
};

namespace zerosched::testing {

namespace {

constexpr int kPollsInProgress = 2;
constexpr int kMostSplits = 100;  // of one family: its numbers
constexpr auto kLater = std::chrono::milliseconds(1000);

std::mutex mutex;  // of everything here
std::map<ncclComm_t, std::unique_ptr<ncclComm>> comms;
std::set<void*> windows;
std::string first_misuse;
int next_number = 0;
std::atomic<int> blocked_calls{0}, generation{0};

FakeNccl& fake() { return FakeNccl::instance(); }

ncclResult_t misuse(const std::string& what) {
  if (first_misuse.empty()) first_misuse = what;
  return ncclInvalidUsage;
}

bool alive(ncclComm_t comm) { return comms.count(comm) != 0; }

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

void end_blocked_calls() {
  ++generation;
  while (blocked_calls > 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

// What a call does on a communicator: at once, or when it has been polled. `mutex` is held.
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

ncclResult_t get_version(int* version) {
  *version = fake().script.version;
  return ncclSuccess;
}

ncclResult_t get_unique_id(ncclUniqueId* id) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (fake().script.unique_id_fails) return ncclSystemError;
  std::memset(id, 0, sizeof(*id));
  const int number = ++next_number * kMostSplits;
  std::memcpy(id->internal, &number, sizeof(number));
  return ncclSuccess;
}

const char* get_error_string(ncclResult_t result) {
  switch (result) {
    case ncclSystemError:
      return "unhandled system error";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInvalidUsage:
      return "invalid usage";
    default:
      return "fake error";
  }
}

const char* get_last_error(ncclComm_t) { return "the fake was told to fail"; }

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

ncclResult_t comm_init_rank_config(
    ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
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

ncclResult_t comm_split(ncclComm_t parent, int color, int key, ncclComm_t* out, ncclConfig_t* config) {
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

ncclResult_t comm_get_async_error(ncclComm_t comm, ncclResult_t* state) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommGetAsyncError after the communicator was freed");
  if (fake().script.async_error) comm->error = ncclRemoteError;
  if (comm->effect && comm->error == ncclSuccess) {
    if (--comm->polls_left <= 0 && comm->effect()) comm->effect = nullptr;
  }
  *state = comm->error != ncclSuccess ? comm->error : comm->effect ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t comm_finalize(ncclComm_t comm) {
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

void remove(ncclComm_t comm) {
  *comm->aborted = true;  // kernels that are left end
  if (comm->split_aborted != nullptr) *comm->split_aborted = true;
  comms.erase(comm);
  --fake().live_comms;
}

ncclResult_t comm_destroy(ncclComm_t comm) {
  fake().runtime->touch_current("ncclCommDestroy");
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommDestroy after the communicator was freed");
  if (!comm->finalized) return misuse("ncclCommDestroy before ncclCommFinalize was through");
  ++fake().destroys;
  remove(comm);
  return ncclSuccess;
}

ncclResult_t comm_abort(ncclComm_t comm) {
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

ncclResult_t launch(ncclComm_t comm, cudaStream_t stream, Exchange::Collective collective) {
  fake().runtime->touch_current("a collective");
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("a collective after the communicator was freed");
  if (comm->finalized) return misuse("a collective after ncclCommFinalize");
  if (collective.count == 0) return misuse("a collective of nothing");
  if (fake().script.collectives_fail) return ncclSystemError;
  collective.send == collective.receive_own ? ++fake().in_place : ++fake().out_of_place;
  auto exchange =
      std::make_shared<Exchange>(comm->rank, comm->size, comm->number, comm->launched++, comm->aborted);
  exchange->set(collective);
  return effect_of(comm, [stream, exchange] {
    fake().runtime->enqueue({0, stream}, [exchange, hangs = fake().script.collectives_hang.load()] {
      return hangs ? exchange->killed() : exchange->step();
    });
    return true;
  });
}

ncclResult_t reduce_scatter(const void* send, void* receive, size_t count, ncclDataType_t type,
    ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  const size_t offset = static_cast<size_t>(comm->rank) * count * Exchange::bytes(type);
  const void* own = static_cast<const char*>(receive) - offset;
  return launch(comm, stream, {Exchange::Kind::reduce_scatter, send, receive, own, count, type, op, -1});
}

ncclResult_t all_gather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t comm,
    cudaStream_t stream) {
  const auto* own =
      static_cast<char*>(receive) + static_cast<size_t>(comm->rank) * count * Exchange::bytes(type);
  return launch(comm, stream, {Exchange::Kind::all_gather, send, receive, own, count, type, ncclSum, -1});
}

ncclResult_t all_reduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
    ncclComm_t comm, cudaStream_t stream) {
  return launch(comm, stream, {Exchange::Kind::all_reduce, send, receive, receive, count, type, op, -1});
}

ncclResult_t broadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
    ncclComm_t comm, cudaStream_t stream) {
  return launch(
      comm, stream, {Exchange::Kind::broadcast, send, receive, receive, count, type, ncclSum, root});
}

ncclResult_t mem_alloc(void** memory, size_t byte_count) {
  fake().runtime->touch_current("ncclMemAlloc");
  auto& script = fake().script;
  if (script.mem_alloc_fails || script.mem_allocs_to_fail-- > 0) return ncclUnhandledCudaError;
  *memory = fake().runtime->allocate(static_cast<int64_t>(byte_count));
  ++fake().live_allocations;
  return ncclSuccess;
}

ncclResult_t mem_free(void* memory) {
  fake().runtime->touch_current("ncclMemFree");
  fake().runtime->free(memory);
  --fake().live_allocations;
  return ncclSuccess;
}

ncclResult_t window_register(ncclComm_t comm, void*, size_t byte_count, void** window, int flags) {
  fake().runtime->touch_current("ncclCommWindowRegister");
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommWindowRegister after the communicator was freed");
  if (byte_count % 4096 != 0 || flags != 1) return misuse("a window of part of a page, or not symmetric");
  if (fake().script.windows_fail) return ncclInvalidArgument;
  if (fake().script.windows_are_null) return ncclSuccess;
  return effect_of(comm, [window] {
    *window = new char;
    windows.insert(*window);
    ++fake().live_windows;
    return true;
  });
}

ncclResult_t window_deregister(ncclComm_t comm, void* window) {
  fake().runtime->touch_current("ncclCommWindowDeregister");
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommWindowDeregister after the communicator was freed");
  if (fake().script.deregistering_fails) return ncclSystemError;
  if (windows.erase(window) == 0) return misuse("a window deregistered twice");
  delete static_cast<char*>(window);
  --fake().live_windows;
  return ncclSuccess;
}

}  // namespace

FakeNccl& FakeNccl::instance() {
  static auto* nccl = new FakeNccl;
  return *nccl;
}

FakeNccl::FakeNccl() {
  Exchange::connect();
  // No thread that a test has left behind is to call MPI once it is finalised, which deletes this attribute before.
  int key = MPI_KEYVAL_INVALID;
  const auto at_finalize = [](MPI_Comm, int, void*, void*) {
    end_blocked_calls();
    return MPI_SUCCESS;
  };
  MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, +at_finalize, &key, nullptr);
  MPI_Comm_set_attr(MPI_COMM_SELF, key, nullptr);
  api_.get_version = get_version;
  api_.get_unique_id = get_unique_id;
  api_.get_error_string = get_error_string;
  api_.get_last_error = get_last_error;
  api_.comm_init_rank_config = comm_init_rank_config;
  api_.comm_split = comm_split;
  api_.comm_finalize = comm_finalize;
  api_.comm_destroy = comm_destroy;
  api_.comm_abort = comm_abort;
  api_.comm_get_async_error = comm_get_async_error;
  api_.reduce_scatter = testing::reduce_scatter;
  api_.all_gather = testing::all_gather;
  api_.all_reduce = testing::all_reduce;
  api_.broadcast = testing::broadcast;
  api_.mem_alloc = testing::mem_alloc;
  api_.mem_free = testing::mem_free;
  api_.comm_window_register = window_register;
  api_.comm_window_deregister = window_deregister;
}

detail::NcclApi FakeNccl::old_api() const {
  detail::NcclApi old = api_;
  old.comm_split = nullptr;
  old.mem_alloc = nullptr;
  old.mem_free = nullptr;
  old.comm_window_register = nullptr;
  old.comm_window_deregister = nullptr;
  return old;
}

std::string FakeNccl::misuse() const {
  const std::lock_guard<std::mutex> lock(mutex);
  return first_misuse;
}

void FakeNccl::reset(FakeRuntime& new_runtime) {
  end_blocked_calls();
  const std::lock_guard<std::mutex> lock(mutex);
  script.~NcclScript();
  new (&script) NcclScript;  // its atomics cannot be assigned
  runtime = &new_runtime;
  aborts = destroys = splits = in_place = out_of_place = 0;
  first_misuse.clear();
}

}  // namespace zerosched::testing
