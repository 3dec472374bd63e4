#include <zerosched/mpi_communicator.h>

#include "base/check.h"
#include "base/random_id.h"
#include "comm/host_memory.h"
#include "comm/mpi/all_gather.h"
#include "comm/mpi/check.h"
#include "comm/mpi/end_job.h"
#include "comm/mpi/make_group.h"
#include "comm/mpi/message_size.h"
#include "comm/mpi/mpi_backend.h"
#include "comm/mpi/progress.h"
#include "comm/mpi/reduce_scatter.h"
#include "comm/mpi/roll_call.h"
#include "comm/mpi/stock_operations.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cmath>
#include <cstring>
#include <map>
#include <utility>

namespace zerosched {

namespace detail {

namespace {

StagedTensor in_and_out(const at::Tensor& tensor) {
  return {tensor, 0, static_cast<int64_t>(tensor.nbytes()), true};
}

}  // namespace

MpiCommunicator::MpiCommunicator(std::shared_ptr<MpiGroup> group, int local_rank)
    : Communicator(group->rank(), group->size(), local_rank), group_(std::move(group)) {}

MpiCommunicator::~MpiCommunicator() {
  if (!Progress::instance().is_forked()) {
    Progress::instance().release(group_);
  } else {
    new std::map(std::move(staging_areas_));  // what they have on a device is not this process's either
  }
}

void MpiCommunicator::leave(const std::string& why) noexcept {
  group_->leave(why);
  Progress::instance().notify(*group_);
}

void MpiCommunicator::abandon(const Cause& cause) noexcept {
  group_->fail_quietly(cause, Failure::Origin::parted);
  Progress::instance().notify(*group_);
}

void MpiCommunicator::leave_others(const std::string& why) {
  Progress::instance().leave_all_but(*group_, why);
}

std::shared_ptr<Communicator> MpiCommunicator::duplicate() {
  constexpr CollectiveLabel kLabel{"duplicate"};
  check();
  const auto duplicate = std::make_shared<Duplicate>(
      group_, make_header(Collective::barrier, kLabel, nullptr), std::vector<at::Tensor>{});
  enqueue(duplicate)->wait();
  const auto id = at::full({1}, static_cast<int64_t>(random_id()), at::kLong);
  do_broadcast(id, 0, kLabel)->wait();
  auto group = make_group_on(duplicate->result(), static_cast<uint64_t>(*id.const_data_ptr<int64_t>()),
      group_->options(), group_->hosts(), std::make_shared<Failure>(group_->failure_state()), talk());
  return std::make_shared<MpiCommunicator>(std::move(group), local_rank());
}

void MpiCommunicator::abort(const std::string& message) noexcept { fail({message, rank()}); }

void MpiCommunicator::fail(const Cause& cause) noexcept {
  group_->fail(cause);
  Progress::instance().notify(*group_);
}

std::string MpiCommunicator::failure() const { return cause().text; }

Cause MpiCommunicator::cause() const {
  if (Progress::instance().is_forked()) return group_->cause_in_fork();
  Progress::instance().drive_if_inline();
  return group_->cause();
}

bool MpiCommunicator::any_thread_may_call() const { return Progress::instance().has_thread(); }

void MpiCommunicator::relay(int peer, const ControlMessage& message) {
  group_->relay(peer, message);
  Progress::instance().notify(*group_);
}

std::vector<ControlMessage> MpiCommunicator::take_relayed() {
  Progress::instance().drive_if_inline();
  return group_->take_relayed();
}

void MpiCommunicator::patient_barrier(CollectiveLabel label) {
  check();
  auto operation = std::make_shared<Barrier>(
      group_, make_header(Collective::barrier, label, nullptr), std::vector<at::Tensor>{});
  operation->be_patient();
  enqueue(operation)->wait();
}

at::Tensor MpiCommunicator::do_allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective) {
  if (device.is_cpu()) return allocate_on_host(numel, dtype);
  ZEROSCHED_CHECK(
      device.is_cuda(), "mpi: allocate: there is no memory on ", device, "; the device must be CPU or CUDA");
  const int index = device.has_index() ? device.index() : 0;
  return staging_area(index)->runtime().empty(numel, dtype, index);
}

// Not counted as traffic of the caller's.
SharingTalk MpiCommunicator::talk() {
  constexpr CollectiveLabel kLabel{"memory that ranks of a host share"};
  SharingTalk talk;
  talk.gather = [this, kLabel](const SharedFile& own) {
    constexpr auto kBytes = static_cast<int64_t>(sizeof(SharedFile));
    const auto flat = at::empty({kBytes * size()}, at::kByte);
    auto* bytes = static_cast<char*>(flat.mutable_data_ptr());
    std::memcpy(bytes + rank() * kBytes, &own, sizeof(own));
    do_all_gather(flat, kLabel)->wait();
    std::vector<SharedFile> all(static_cast<size_t>(size()));
    std::memcpy(all.data(), bytes, flat.nbytes());
    return all;
  };
  talk.lowest = [this, kLabel](int own) {
    const auto lowest = at::full({1}, own, at::kInt);
    do_all_reduce(lowest, ReduceOp::min, kLabel)->wait();
    return *lowest.const_data_ptr<int>();
  };
  return talk;
}

at::Tensor MpiCommunicator::allocate_on_host(int64_t numel, at::ScalarType dtype) {
  const auto& local_ranks = group_->local_ranks();
  const int64_t byte_count = numel * static_cast<int64_t>(c10::elementSize(dtype));
  if (local_ranks == nullptr || byte_count == 0) return empty_host_tensor(numel, dtype);
  const int64_t stride = LocalRanks::stride_of(byte_count);
  auto window = share_memory(group_->hosts(), rank(), stride * local_ranks->count(), talk());
  if (window == nullptr) return empty_host_tensor(numel, dtype);
  return local_ranks->tensor_in(std::move(window), stride, numel, dtype);
}

std::shared_ptr<Work> MpiCommunicator::do_reduce_scatter(
    const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) {
  StagedTensor in = in_and_out(flat);
  in.comes_back = false;
  StagedTensor out = in_and_out(shard_out);
  out.bytes_in = 0;
  auto header = make_header(Collective::reduce_scatter, label, &flat);
  const int64_t stride = window_stride(flat, header);
  return launch<ReduceScatter>(header, {in, out}, stride);
}

std::shared_ptr<Work> MpiCommunicator::do_all_gather(const at::Tensor& flat, CollectiveLabel label) {
  StagedTensor staged = in_and_out(flat);
  staged.bytes_in /= size();
  staged.first_byte_in = rank() * staged.bytes_in;
  auto header = make_header(Collective::all_gather, label, &flat);
  const int64_t stride = window_stride(flat, header);
  return launch<AllGather>(header, {staged}, stride);
}

std::shared_ptr<Work> MpiCommunicator::do_all_reduce(
    const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) {
  auto header = make_header(Collective::all_reduce, label, &tensor);
  header.reduction = static_cast<uint8_t>(op);
  return launch<AllReduce>(header, {in_and_out(tensor)});
}

std::shared_ptr<Work> MpiCommunicator::do_broadcast(
    const at::Tensor& tensor, int root, CollectiveLabel label) {
  auto header = make_header(Collective::broadcast, label, &tensor);
  header.root = root;
  StagedTensor staged = in_and_out(tensor);
  staged.comes_back = rank() != root;
  if (rank() != root) staged.bytes_in = 0;
  return launch<Broadcast>(header, {staged});
}

std::shared_ptr<Work> MpiCommunicator::do_barrier(CollectiveLabel label) {
  return launch<Barrier>(make_header(Collective::barrier, label, nullptr), {});
}

// Of the window that ranks of this host read `flat` in; 0: none. Said in the header, because all ranks must do the same.
int64_t MpiCommunicator::window_stride(const at::Tensor& flat, Header& header) const {
  if (group_->local_ranks() == nullptr || !group_->runtime().device_of(flat).is_cpu()) return 0;
  const int64_t stride = group_->local_ranks()->stride_at(flat);
  header.in_window = stride != 0 ? 1 : 0;
  return stride;
}

template <typename Kind, typename... More>
std::shared_ptr<Work> MpiCommunicator::launch(
    const Header& header, std::vector<StagedTensor> tensors, More... more) {
  const at::Device device = tensors.empty() ? at::kCPU : group_->runtime().device_of(tensors[0].tensor);
  if (device.is_cpu()) {
    std::vector<at::Tensor> on_host;
    for (const auto& staged : tensors) on_host.push_back(staged.tensor);
    return enqueue(std::make_shared<Kind>(group_, header, std::move(on_host), nullptr, more...));
  }
  ZEROSCHED_CHECK(device.is_cuda(), "mpi: ", name_of(static_cast<Collective>(header.kind)),
      ": the tensor is on ", device, "; this backend moves CPU and CUDA tensors");
  auto staging = std::make_unique<Staging>(staging_area(device.index()), std::move(tensors));
  auto on_host = staging->host_tensors();
  return enqueue(std::make_shared<Kind>(group_, header, std::move(on_host), std::move(staging), more...));
}

std::shared_ptr<Work> MpiCommunicator::enqueue(std::shared_ptr<Operation> operation) {
  group_->launch(operation);
  Progress::instance().notify(*group_);
  return operation;
}

std::shared_ptr<StagingArea> MpiCommunicator::staging_area(int device) {
  auto& runtime = group_->runtime();
  ZEROSCHED_CHECK(
      runtime.device_count() > 0, "mpi: tensors on cuda:", device, ", but ", runtime.why_no_device());
  const std::lock_guard<std::mutex> lock(staging_mutex_);
  auto& area = staging_areas_[device];
  if (area == nullptr) area = std::make_shared<StagingArea>(runtime, device);
  return area;
}

std::shared_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options) {
  ZEROSCHED_CHECK(std::isfinite(options.timeout_seconds) && options.timeout_seconds > 0,
      "mpi: the timeout is ", options.timeout_seconds, " s; it must be positive and finite");
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  ZEROSCHED_CHECK(initialized && !finalized, "mpi: MPI is ",
      finalized ? "finalised already" : "not initialised",
      "; call MPI_Init_thread first, or let zerosched::Session do it");
  ZEROSCHED_CHECK(parent != MPI_COMM_NULL, "mpi: the parent communicator is MPI_COMM_NULL");
  int between_groups = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_test_inter, parent, &between_groups);
  ZEROSCHED_CHECK(!between_groups, "mpi: the parent is an inter-communicator; pass an intra-communicator");

  auto& progress = Progress::instance();
  progress.start();
  await_all_ranks(parent, options.timeout_seconds);
  const Hosts hosts = find_hosts(parent, options);
  if (options.message_bytes == 0) {
    options.message_bytes = choose_message_bytes(parent, hosts.count() == 1 || !options.host_of_rank.empty());
  }
  auto group = make_group(parent, options, options.flat_collectives ? Hosts::apart(hosts.ranks()) : hosts,
      std::make_shared<Failure>());
  if (!progress.has_thread() && group->rank() == 0) {
    TORCH_WARN_ONCE(
        "zerosched: MPI was initialised below MPI_THREAD_MULTIPLE, so collectives advance only inside calls "
        "into the library and do not overlap with backward; ask MPI_Init_thread for MPI_THREAD_MULTIPLE");
  }
  const int local_rank = hosts.position_of(group->rank());
  return std::make_shared<MpiCommunicator>(std::move(group), local_rank);
}

void abort_mpi_communicators(const Cause& cause, double seconds) noexcept {
  Progress::instance().abort_all(cause, seconds);
}

}  // namespace detail

std::shared_ptr<Communicator> mpi_communicator(
    MPI_Comm parent, double timeout_seconds, bool flat_collectives) {
  detail::MpiOptions options;
  options.timeout_seconds = timeout_seconds;
  options.flat_collectives = flat_collectives;
  auto communicator = detail::make_mpi_communicator(parent, options);
  if (communicator->size() > 1) detail::end_mpi_job_on_terminate();
  return communicator;
}

}  // namespace zerosched
