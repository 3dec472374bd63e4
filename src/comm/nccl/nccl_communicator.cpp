#include <zerosched/nccl_communicator.h>

#include "base/check.h"
#include "base/start_thread.h"
#include "base/while_running.h"
#include "comm/nccl/group.h"
#include "comm/nccl/join.h"
#include "comm/nccl/nccl_backend.h"
#include "comm/nccl/types.h"
#include "comm/nccl/work.h"

#include <utility>

#include <pthread.h>

namespace zerosched {

namespace detail {

namespace {

std::thread start_watcher(std::shared_ptr<NcclGroup> group) {
  return start_thread([group = std::move(group)]() mutable {
    pthread_setname_np(pthread_self(), "zerosched-nccl");
    group->watch();
    const WhileRunning running;  // the group may go here, and with it what it has on the device
    group.reset();
  });
}

}  // namespace

NcclCommunicator::NcclCommunicator(std::shared_ptr<NcclGroup> group, int local_rank)
    : Communicator(group->rank(), group->size(), local_rank),
      group_(std::move(group)),
      barrier_(group_->runtime().empty(1, at::kByte, group_->device())),
      watcher_(start_watcher(group_)) {}

NcclCommunicator::~NcclCommunicator() {
  if (!owner_.is_this()) {
    // A child that fork() has made has neither the thread nor the device.
    watcher_.detach();
    new std::shared_ptr(group_);
    new at::Tensor(barrier_);
    return;
  }
  // Collectives in flight when an exception unwinds are those whose other ranks will not come.
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
  group_->leave({});
  group_->close(unwinding) ? watcher_.join() : watcher_.detach();
}

std::shared_ptr<Communicator> NcclCommunicator::duplicate() {
  check();
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(group_->device()));
  return std::make_shared<NcclCommunicator>(
      join_nccl(group_->host(), device, group_->options(), group_.get()), local_rank());
}

void NcclCommunicator::abort(const std::string& message) noexcept { fail({message, rank()}); }

void NcclCommunicator::fail(const Cause& cause) noexcept { group_->fail(cause); }

std::string NcclCommunicator::failure() const { return group_->host().failure(); }

Cause NcclCommunicator::cause() const { return zerosched::detail::cause(group_->host()); }

void NcclCommunicator::set_owner(const std::string& owner) { group_->set_owner(owner); }

void NcclCommunicator::leave(const std::string& why) noexcept { group_->leave(why); }

void NcclCommunicator::abandon(const Cause& cause) noexcept {
  if (auto* member = dynamic_cast<Member*>(&group_->host())) member->abandon(cause);
}

bool NcclCommunicator::on_host(const at::Tensor& tensor, Collective kind) const {
  const at::Device device = group_->runtime().device_of(tensor);
  if (device.is_cpu()) return true;
  ZEROSCHED_CHECK(device.is_cuda() && device.index() == group_->device(), "nccl: ", name_of(kind),
      " on rank ", rank(), ": the tensor is on ", device,
      ", but this communicator is on cuda:", group_->device());
  return false;
}

at::Tensor NcclCommunicator::do_allocate(
    int64_t numel, at::ScalarType dtype, at::Device device, Collective use) {
  if (device.is_cpu()) return group_->host().allocate(numel, dtype, device, use);
  ZEROSCHED_CHECK(device.is_cuda() && (!device.has_index() || device.index() == group_->device()),
      "nccl: allocate on rank ", rank(), ": the device is ", device,
      ", but this communicator is on cuda:", group_->device());
  // NCCL 2.28 registers nothing for rings that reduce and scatter (coll_reg.cc), its symmetric kernels would want the
  // output in a window too, and what is left (NVLS) has the hosts of a node meet in every launch, which hooks may not.
  if (use == Collective::reduce_scatter) return group_->runtime().empty(numel, dtype, group_->device());
  return group_->memory().allocate(numel, dtype, group_->host(), [this] { check(); });
}

std::shared_ptr<Work> NcclCommunicator::do_reduce_scatter(
    const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) {
  constexpr auto kind = Collective::reduce_scatter;
  const bool host = on_host(flat, kind);
  ZEROSCHED_CHECK(on_host(shard_out, kind) == host, "nccl: reduce_scatter on rank ", rank(),
      ": the flat tensor is on ", group_->runtime().device_of(flat), ", the shard on ",
      group_->runtime().device_of(shard_out));
  if (host) return group_->host().reduce_scatter(flat, shard_out, label);
  const auto& api = group_->api();
  const auto type = nccl_reducible_type(flat.scalar_type());
  NcclGroup::Call call;
  if (flat.numel() > 0) {
    call = [&](ncclComm_t comm, cudaStream_t stream) {
      return api.reduce_scatter(flat.const_data_ptr(), shard_out.data_ptr(),
          static_cast<size_t>(shard_out.numel()), type, ncclSum, comm, stream);
    };
  }
  return group_->launch("ncclReduceScatter", make_header(kind, label, &flat), {flat, shard_out}, call);
}

std::shared_ptr<Work> NcclCommunicator::do_all_gather(const at::Tensor& flat, CollectiveLabel label) {
  constexpr auto kind = Collective::all_gather;
  if (on_host(flat, kind)) return group_->host().all_gather(flat, label);
  const auto& api = group_->api();
  const size_t slice_bytes = flat.nbytes() / static_cast<size_t>(size());
  NcclGroup::Call call;
  if (slice_bytes > 0) {
    call = [&](ncclComm_t comm, cudaStream_t stream) {
      auto* data = static_cast<char*>(flat.data_ptr());
      return api.all_gather(
          data + static_cast<size_t>(rank()) * slice_bytes, data, slice_bytes, ncclInt8, comm, stream);
    };
  }
  return group_->launch("ncclAllGather", make_header(kind, label, &flat), {flat}, call);
}

std::shared_ptr<Work> NcclCommunicator::do_all_reduce(
    const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) {
  constexpr auto kind = Collective::all_reduce;
  if (on_host(tensor, kind)) return group_->host().all_reduce(tensor, op, label);
  const auto& api = group_->api();
  const auto type = nccl_reducible_type(tensor.scalar_type());
  auto header = make_header(kind, label, &tensor);
  header.reduction = static_cast<uint8_t>(op);
  NcclGroup::Call call;
  if (tensor.numel() > 0) {
    call = [&](ncclComm_t comm, cudaStream_t stream) {
      return api.all_reduce(tensor.const_data_ptr(), tensor.data_ptr(), static_cast<size_t>(tensor.numel()),
          type, nccl_reduction(op), comm, stream);
    };
  }
  return group_->launch("ncclAllReduce", header, {tensor}, call);
}

std::shared_ptr<Work> NcclCommunicator::do_broadcast(
    const at::Tensor& tensor, int root, CollectiveLabel label) {
  constexpr auto kind = Collective::broadcast;
  if (on_host(tensor, kind)) return group_->host().broadcast(tensor, root, label);
  const auto& api = group_->api();
  auto header = make_header(kind, label, &tensor);
  header.root = root;
  NcclGroup::Call call;
  if (tensor.numel() > 0) {
    call = [&](ncclComm_t comm, cudaStream_t stream) {
      return api.broadcast(
          tensor.const_data_ptr(), tensor.data_ptr(), tensor.nbytes(), ncclInt8, root, comm, stream);
    };
  }
  return group_->launch("ncclBroadcast", header, {tensor}, call);
}

std::shared_ptr<Work> NcclCommunicator::do_barrier(CollectiveLabel label) {
  const auto& api = group_->api();
  return group_->launch("ncclAllReduce", make_header(Collective::barrier, label, nullptr), {barrier_},
      [&](ncclComm_t comm, cudaStream_t stream) {
        return api.all_reduce(
            barrier_.const_data_ptr(), barrier_.data_ptr(), 1, ncclUint8, ncclMax, comm, stream);
      });
}

std::shared_ptr<Communicator> make_nccl_communicator(
    Communicator& bootstrap, std::optional<at::Device> device, const NcclOptions& options) {
  return std::make_shared<NcclCommunicator>(join_nccl(bootstrap, device, options), bootstrap.local_rank());
}

}  // namespace detail

std::shared_ptr<Communicator> nccl_communicator(const std::shared_ptr<Communicator>& bootstrap,
    std::optional<at::Device> device, const NcclCommunicatorOptions& options) {
  ZEROSCHED_CHECK(bootstrap != nullptr, "nccl: the bootstrap communicator is null");
  detail::NcclOptions all;
  all.timeout_seconds = options.timeout();
  all.abort_timeout_seconds = options.abort_timeout();
  all.symmetric_memory = options.symmetric_memory();
  all.end_process = options.end_process();
  return detail::make_nccl_communicator(*bootstrap, device, all);
}

std::shared_ptr<Communicator> nccl_communicator(const std::shared_ptr<Communicator>& bootstrap,
    std::optional<at::Device> device, double timeout_seconds) {
  return nccl_communicator(bootstrap, device, NcclCommunicatorOptions().timeout(timeout_seconds));
}

}  // namespace zerosched
