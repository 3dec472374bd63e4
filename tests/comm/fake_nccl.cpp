#include "comm/fake_nccl.h"

#include "comm/fake_nccl_exchange.h"

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>

#include <mpi.h>

using zerosched::testing::Exchange;
using zerosched::testing::FakeNccl;

// What NCCL's header leaves open.
struct ncclComm {
  int number = 0;  // the same on every rank
  int rank = 0, size = 1;
  int64_t launched = 0;
  std::shared_ptr<std::atomic<bool>> aborted = std::make_shared<std::atomic<bool>>(false);
  // A call in progress: how many polls until it takes effect, and what that is. False: not yet.
  int polls_left = 0;
  std::function<bool()> effect;
  ncclResult_t error = ncclSuccess;
  bool finalized = false;
};

namespace zerosched::testing {

namespace {

constexpr int kPollsInProgress = 2;

std::mutex mutex;  // of everything here
std::map<ncclComm_t, std::unique_ptr<ncclComm>> comms;
std::set<void*> windows;
std::string first_misuse;
int next_number = 0;

FakeNccl& fake() { return FakeNccl::instance(); }

ncclResult_t misuse(const std::string& what) {
  if (first_misuse.empty()) first_misuse = what;
  return ncclInvalidUsage;
}

bool alive(ncclComm_t comm) { return comms.count(comm) != 0; }

ncclResult_t in_progress(ncclComm_t comm, std::function<bool()> effect) {
  if (comm->effect) return misuse("a call while another is in progress");
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
  std::memcpy(id->internal, &++next_number, sizeof(next_number));
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

ncclResult_t comm_init_rank_config(
    ncclComm_t* out, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (config->blocking != 0) return misuse("a blocking communicator");
  const auto& script = fake().script;
  if (script.init_fails_at_once) return ncclSystemError;
  auto comm = std::make_unique<ncclComm>();
  comm->rank = rank;
  comm->size = size;
  std::memcpy(&comm->number, id.internal, sizeof(comm->number));
  ++fake().live_comms;
  *out = comm.get();
  comms[*out] = std::move(comm);
  if (script.init_never_completes) return in_progress(*out, [] { return false; });
  if (script.init_fails_later) {
    return in_progress(*out, [comm = *out] {
      comm->error = ncclRemoteError;
      return true;
    });
  }
  auto hello = std::make_shared<Exchange>(rank, size, (*out)->number, (*out)->launched++, (*out)->aborted);
  return in_progress(*out, [hello] { return hello->step(); });
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
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommFinalize after the communicator was freed");
  return in_progress(comm, [comm] {
    comm->finalized = true;
    return !fake().script.finalize_never_completes;
  });
}

void remove(ncclComm_t comm) {
  *comm->aborted = true;  // kernels that are left end
  comms.erase(comm);
  --fake().live_comms;
}

ncclResult_t comm_destroy(ncclComm_t comm) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommDestroy after the communicator was freed");
  if (!comm->finalized) return misuse("ncclCommDestroy before ncclCommFinalize was through");
  ++fake().destroys;
  remove(comm);
  return ncclSuccess;
}

ncclResult_t comm_abort(ncclComm_t comm) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommAbort after the communicator was freed");
  ++fake().aborts;
  remove(comm);
  return ncclSuccess;
}

ncclResult_t launch(ncclComm_t comm, cudaStream_t stream, Exchange::Collective collective) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("a collective after the communicator was freed");
  if (comm->finalized) return misuse("a collective after ncclCommFinalize");
  if (collective.count == 0) return misuse("a collective of nothing");
  if (fake().script.collectives_fail) return ncclSystemError;
  collective.send == collective.receive_own ? ++fake().in_place : ++fake().out_of_place;
  auto exchange =
      std::make_shared<Exchange>(comm->rank, comm->size, comm->number, comm->launched++, comm->aborted);
  exchange->set(collective);
  return in_progress(comm, [stream, exchange] {
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
  if (fake().script.mem_alloc_fails) return ncclUnhandledCudaError;
  *memory = fake().runtime->allocate(static_cast<int64_t>(byte_count));
  ++fake().live_allocations;
  return ncclSuccess;
}

ncclResult_t mem_free(void* memory) {
  fake().runtime->free(memory);
  --fake().live_allocations;
  return ncclSuccess;
}

ncclResult_t window_register(ncclComm_t comm, void*, size_t byte_count, void** window, int flags) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommWindowRegister after the communicator was freed");
  if (byte_count % 4096 != 0 || flags != 1) return misuse("a window of part of a page, or not symmetric");
  if (fake().script.windows_fail) return ncclInvalidArgument;
  if (fake().script.windows_are_null) return ncclSuccess;
  return in_progress(comm, [window] {
    *window = new char;
    windows.insert(*window);
    ++fake().live_windows;
    return true;
  });
}

ncclResult_t window_deregister(ncclComm_t comm, void* window) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!alive(comm)) return misuse("ncclCommWindowDeregister after the communicator was freed");
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
  api_.get_version = get_version;
  api_.get_unique_id = get_unique_id;
  api_.get_error_string = get_error_string;
  api_.get_last_error = get_last_error;
  api_.comm_init_rank_config = comm_init_rank_config;
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
  const std::lock_guard<std::mutex> lock(mutex);
  script.~NcclScript();
  new (&script) NcclScript;  // its atomics cannot be assigned
  runtime = &new_runtime;
  aborts = destroys = in_place = out_of_place = 0;
  first_misuse.clear();
}

}  // namespace zerosched::testing
