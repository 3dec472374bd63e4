#include "comm/nccl/join.h"

#include "base/check.h"
#include "base/message_of.h"
#include "base/random_id.h"
#include "base/running_time.h"
#include "comm/agree.h"
#include "comm/failure/deadlines.h"
#include "comm/nccl/alternative.h"
#include "comm/nccl/group.h"
#include "comm/placement.h"

#include <c10/util/Exception.h>

#include <chrono>
#include <cmath>
#include <cstring>

namespace zerosched::detail {

namespace {

constexpr double kLookSeconds = 0.005;

// What rank 0 tells the others.
struct Invitation {
  ncclUniqueId nccl;
  uint64_t group;
};

void check_host(const Communicator& host) {
  const auto* relay = dynamic_cast<const ControlRelay*>(&host);
  ZEROSCHED_CHECK(relay != nullptr || host.size() == 1, "nccl: a ", host.backend(),
      " communicator cannot bootstrap NCCL; pass an MPI communicator");
  ZEROSCHED_CHECK(relay == nullptr || relay->any_thread_may_call(),
      "nccl: the bootstrap communicator can be used by one thread only, and NCCL's failures are looked for "
      "by another; ask MPI_Init_thread for MPI_THREAD_MULTIPLE");
}

int choose_device(const Communicator& host, std::optional<at::Device> wanted, device::Runtime& runtime) {
  const int count = runtime.device_count();
  ZEROSCHED_CHECK(
      count > 0, "nccl: ", runtime.why_no_device(), "; or without a GPU per rank: ", kHostStagedAlternative);
  if (!wanted) return device_of_local_rank(host, runtime);
  ZEROSCHED_CHECK(wanted->is_cuda(), "nccl: the device is ", *wanted, "; it must be a CUDA device");
  const int index = wanted->has_index() ? wanted->index() : device_of_local_rank(host, runtime);
  ZEROSCHED_CHECK(index < count, "nccl: the device is ", *wanted, ", but there are ", count, " GPUs");
  return index;
}

Invitation invite(Communicator& host, const NcclApi& api, bool splits) {
  Invitation invitation{};
  agree_on(host, [&] {
    if (host.rank() != 0) return;
    if (!splits) {
      const ncclResult_t result = api.get_unique_id(&invitation.nccl);
      ZEROSCHED_CHECK(result == ncclSuccess, "nccl: ncclGetUniqueId failed: ", api.get_error_string(result));
    }
    invitation.group = random_id();
  });
  std::string bytes(reinterpret_cast<const char*>(&invitation), sizeof(invitation));
  bytes = broadcast_bytes(host, bytes, 0, {"NCCL's unique id"});
  std::memcpy(&invitation, bytes.data(), sizeof(invitation));
  return invitation;
}

// Waits until all ranks have joined. What fails at once on some rank is agreed on; of what fails later, while others
// are still joining, those hear through the host communicator only.
void connect(Communicator& host, const NcclComm& comm, double timeout_seconds) {
  const auto end = running_now() + std::chrono::duration<double>(timeout_seconds);
  agree_on(host, [&] {
    try {
      comm.started(deadlines::kFirstErrorOfNccl.count());
    } catch (const c10::Error& error) {
      ZEROSCHED_CHECK(
          false, "nccl: ", error.what_without_backtrace(), "; or without NCCL: ", kHostStagedAlternative);
    }
  });
  try {
    while (!comm.started(kLookSeconds)) {
      host.check();
      ZEROSCHED_CHECK(running_now() < end, "the ranks did not connect within ", timeout_seconds,
          " s; NCCL_DEBUG=INFO shows which network NCCL tries, NCCL_SOCKET_IFNAME names another");
    }
  } catch (const c10::Error& error) {
    host.abort("nccl: rank " + std::to_string(host.rank()) + ": " + error.what_without_backtrace());
    host.check();
    throw;
  }
  agree(host, "");  // nobody goes on before everyone has joined
}

std::shared_ptr<NcclComm> make_comm(Communicator& host, const NcclOptions& options, int device,
    const Invitation& invitation, const std::shared_ptr<NcclComm>& parent) {
  auto comm = std::make_shared<NcclComm>(*options.api, *options.runtime, device);
  if (parent != nullptr) {
    comm->start_split(parent, host.rank());
  } else {
    comm->start(host.size(), host.rank(), invitation.nccl);
  }
  return comm;
}

}  // namespace

std::shared_ptr<NcclGroup> join_nccl(
    Communicator& bootstrap, std::optional<at::Device> device, NcclOptions options, NcclGroup* parent) {
  ZEROSCHED_CHECK(std::isfinite(options.timeout_seconds) && options.timeout_seconds > 0,
      "nccl: the timeout is ", options.timeout_seconds, " s; it must be positive and finite");
  ZEROSCHED_CHECK(std::isfinite(options.abort_timeout_seconds) && options.abort_timeout_seconds > 0,
      "nccl: the abort timeout is ", options.abort_timeout_seconds, " s; it must be positive and finite");
  const std::shared_ptr<Communicator> host = bootstrap.duplicate();
  if (options.runtime == nullptr) options.runtime = &device::cuda();
  auto& runtime = *options.runtime;
  int index = -1;
  agree_on(*host, [&] {
    check_host(*host);
    index = choose_device(*host, device, runtime);
    if (options.api == nullptr) options.api = &nccl_api();
    check_nccl_version(*options.api);
  });
  const std::string shared = shared_device(*host, runtime, index);
  ZEROSCHED_CHECK(shared.empty(), "nccl: ", shared,
      ", and NCCL needs a GPU per rank; start no more ranks on a node than it has "
      "GPUs; or with ranks that share one: ",
      kHostStagedAlternative);
  const bool splits =
      on_all_ranks(*host, parent != nullptr && options.api->comm_split != nullptr, "NCCL splits");
  const Invitation invitation = invite(*host, *options.api, splits);
  const auto comm = make_comm(*host, options, index, invitation, splits ? parent->comm() : nullptr);
  try {
    connect(*host, *comm, options.timeout_seconds);
    std::shared_ptr<NcclGroup> group;
    agree_on(
        *host, [&] { group = std::make_shared<NcclGroup>(host, comm, index, invitation.group, options); });
    return group;
  } catch (const std::exception& error) {
    // A split that other ranks do not come to keeps its parent's communicator for ever.
    if (splits && !comm->ended_starting()) parent->fail({message_of(error), host->rank()});
    comm->give_up_start();
    throw;
  }
}

}  // namespace zerosched::detail
