#include "fakes/fake_nccl.h"

#include "fakes/fake_nccl_comm.h"
#include "fakes/fake_nccl_exchange.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>

#include <mpi.h>

namespace zerosched::testing {

using fake_comms::alive;
using fake_comms::effect_of;
using fake_comms::end_blocked_calls;
using fake_comms::first_misuse;
using fake_comms::kMostSplits;
using fake_comms::misuse;
using fake_comms::mutex;

namespace {

std::set<void*> windows;  // under mutex
int next_number = 0;      // under mutex

FakeNccl& fake() { return FakeNccl::instance(); }

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
  api_.comm_init_rank_config = fake_comms::init_rank_config;
  api_.comm_split = fake_comms::split;
  api_.comm_finalize = fake_comms::finalize;
  api_.comm_destroy = fake_comms::destroy;
  api_.comm_abort = fake_comms::abort;
  api_.comm_get_async_error = fake_comms::get_async_error;
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
