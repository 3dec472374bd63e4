#include <zerosched/mpi_communicator.h>

#include "comm/host_memory.h"
#include "comm/mpi/all_gather.h"
#include "comm/mpi/check.h"
#include "comm/mpi/end_job.h"
#include "comm/mpi/mpi_backend.h"
#include "comm/mpi/progress.h"
#include "comm/mpi/reduce_scatter.h"
#include "comm/mpi/roll_call.h"
#include "comm/mpi/stock_operations.h"

#include <cmath>
#include <map>
#include <random>
#include <utility>

namespace zerosched {

namespace detail {

namespace {

StagedTensor in_and_out(const at::Tensor& tensor) {
  return {tensor, 0, static_cast<int64_t>(tensor.nbytes()), true};
}

// A duplicate without the parent's hints, some of which (no wildcard receives, say) would break ours.
MPI_Comm duplicate_of(MPI_Comm parent) {
  MPI_Comm comm = MPI_COMM_NULL;
  ZEROSCHED_MPI_CALL(MPI_Comm_dup_with_info, parent, MPI_INFO_NULL, &comm);
  ZEROSCHED_MPI_CALL(MPI_Comm_set_errhandler, comm, MPI_ERRORS_RETURN);
  return comm;
}

// All ranks are known to be here.
std::shared_ptr<Group> make_group(
    MPI_Comm parent, const MpiOptions& options, std::shared_ptr<Failure> failure) {
  const MPI_Comm comm = duplicate_of(parent);
  std::random_device random;
  uint64_t id = (static_cast<uint64_t>(random()) << 32) | random();
  ZEROSCHED_MPI_CALL(MPI_Bcast, &id, 1, MPI_UINT64_T, 0, comm);
  auto group = std::make_shared<Group>(comm, id, options, std::move(failure));
  Progress::instance().add(group);
  return group;
}

int rank_on_node(MPI_Comm parent) {
  MPI_Comm node = MPI_COMM_NULL;
  ZEROSCHED_MPI_CALL(MPI_Comm_split_type, parent, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  int rank = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_rank, node, &rank);
  ZEROSCHED_MPI_CALL(MPI_Comm_free, &node);
  return rank;
}

}  // namespace

MpiCommunicator::MpiCommunicator(std::shared_ptr<Group> group, int local_rank)
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

void MpiCommunicator::abandon(const std::string& message) noexcept {
  group_->fail_quietly(message, Failure::Origin::parted);
  Progress::instance().notify(*group_);
}

void MpiCommunicator::leave_others(const std::string& why) {
  Progress::instance().leave_all_but(*group_, why);
}

std::shared_ptr<Communicator> MpiCommunicator::duplicate() {
  check();
  do_barrier({"duplicate"})->wait();
  auto group =
      make_group(group_->comm(), group_->options(), std::make_shared<Failure>(group_->failure_state()));
  return std::make_shared<MpiCommunicator>(std::move(group), local_rank());
}

void MpiCommunicator::abort(const std::string& message) noexcept {
  group_->fail(message);
  Progress::instance().notify(*group_);
}

std::string MpiCommunicator::failure() const {
  if (Progress::instance().is_forked()) {
    return "mpi: this process is a child that rank " + std::to_string(rank()) +
           " has forked, which has no part in the rank's job; leave what is collective to the rank itself";
  }
  Progress::instance().drive_if_inline();
  return group_->failure();
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
  if (device.is_cpu()) return empty_host_tensor(numel, dtype);
  TORCH_CHECK(
      device.is_cuda(), "mpi: allocate: there is no memory on ", device, "; the device must be CPU or CUDA");
  const int index = device.has_index() ? device.index() : 0;
  return staging_area(index)->runtime().empty(numel, dtype, index);
}

std::shared_ptr<Work> MpiCommunicator::do_reduce_scatter(
    const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) {
  StagedTensor in = in_and_out(flat);
  in.comes_back = false;
  StagedTensor out = in_and_out(shard_out);
  out.bytes_in = 0;
  return launch<ReduceScatter>(make_header(Collective::reduce_scatter, label, &flat), {in, out});
}

std::shared_ptr<Work> MpiCommunicator::do_all_gather(const at::Tensor& flat, CollectiveLabel label) {
  StagedTensor staged = in_and_out(flat);
  staged.bytes_in /= size();
  staged.first_byte_in = rank() * staged.bytes_in;
  return launch<AllGather>(make_header(Collective::all_gather, label, &flat), {staged});
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

template <typename Kind>
std::shared_ptr<Work> MpiCommunicator::launch(const Header& header, std::vector<StagedTensor> tensors) {
  const at::Device device = tensors.empty() ? at::kCPU : group_->runtime().device_of(tensors[0].tensor);
  if (device.is_cpu()) {
    std::vector<at::Tensor> on_host;
    for (const auto& staged : tensors) on_host.push_back(staged.tensor);
    return enqueue(std::make_shared<Kind>(group_, header, std::move(on_host)));
  }
  TORCH_CHECK(device.is_cuda(), "mpi: ", name_of(static_cast<Collective>(header.kind)), ": the tensor is on ",
      device, "; this backend moves CPU and CUDA tensors");
  auto staging = std::make_unique<Staging>(staging_area(device.index()), std::move(tensors));
  auto on_host = staging->host_tensors();
  return enqueue(std::make_shared<Kind>(group_, header, std::move(on_host), std::move(staging)));
}

std::shared_ptr<Work> MpiCommunicator::enqueue(std::shared_ptr<Operation> operation) {
  group_->launch(operation);
  Progress::instance().notify(*group_);
  return operation;
}

std::shared_ptr<StagingArea> MpiCommunicator::staging_area(int device) {
  auto& runtime = group_->runtime();
  TORCH_CHECK(runtime.device_count() > 0, "mpi: tensors on cuda:", device, ", but ", runtime.why_no_device());
  const std::lock_guard<std::mutex> lock(staging_mutex_);
  auto& area = staging_areas_[device];
  if (area == nullptr) area = std::make_shared<StagingArea>(runtime, device);
  return area;
}

std::shared_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options) {
  TORCH_CHECK(std::isfinite(options.timeout_seconds) && options.timeout_seconds > 0, "mpi: the timeout is ",
      options.timeout_seconds, " s; it must be positive and finite");
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  TORCH_CHECK(initialized && !finalized, "mpi: MPI is ", finalized ? "finalised already" : "not initialised",
      "; call MPI_Init_thread first, or let zerosched::Session do it");
  TORCH_CHECK(parent != MPI_COMM_NULL, "mpi: the parent communicator is MPI_COMM_NULL");
  int between_groups = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_test_inter, parent, &between_groups);
  TORCH_CHECK(!between_groups, "mpi: the parent is an inter-communicator; pass an intra-communicator");

  auto& progress = Progress::instance();
  progress.start();
  await_all_ranks(parent, options.timeout_seconds);
  const int local_rank = rank_on_node(parent);
  auto group = make_group(parent, options, std::make_shared<Failure>());
  if (!progress.has_thread() && group->rank() == 0) {
    TORCH_WARN_ONCE(
        "zerosched: MPI was initialised below MPI_THREAD_MULTIPLE, so collectives advance only inside calls "
        "into the library and do not overlap with backward; ask MPI_Init_thread for MPI_THREAD_MULTIPLE");
  }
  return std::make_shared<MpiCommunicator>(std::move(group), local_rank);
}

void abort_mpi_communicators(const std::string& message, double seconds) noexcept {
  Progress::instance().abort_all(message, seconds);
}

}  // namespace detail

std::shared_ptr<Communicator> mpi_communicator(MPI_Comm parent, double timeout_seconds) {
  detail::MpiOptions options;
  options.timeout_seconds = timeout_seconds;
  auto communicator = detail::make_mpi_communicator(parent, options);
  if (communicator->size() > 1) detail::end_mpi_job_on_terminate();
  return communicator;
}

}  // namespace zerosched
