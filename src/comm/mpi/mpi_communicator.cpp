#include <zerosched/mpi_communicator.h>

#include "comm/host_memory.h"
#include "comm/mpi/all_gather.h"
#include "comm/mpi/backoff.h"
#include "comm/mpi/check.h"
#include "comm/mpi/mpi_backend.h"
#include "comm/mpi/progress.h"
#include "comm/mpi/reduce_scatter.h"
#include "comm/mpi/stock_operations.h"

#include <cmath>
#include <random>
#include <utility>

namespace zerosched {

namespace detail {

namespace {

void require_cpu(const at::Tensor& tensor, Collective kind) {
  TORCH_CHECK(
      tensor.device().is_cpu(),
      "mpi: ",
      name_of(kind),
      ": this backend moves CPU tensors, but the tensor is on ",
      tensor.device(),
      "; move it to the CPU or use a backend for that device");
}

// A duplicate without the parent's hints, some of which (no wildcard receives, say) would break ours.
MPI_Comm duplicate_of(MPI_Comm parent) {
  MPI_Comm comm = MPI_COMM_NULL;
  ZEROSCHED_MPI_CALL(MPI_Comm_dup_with_info, parent, MPI_INFO_NULL, &comm);
  ZEROSCHED_MPI_CALL(MPI_Comm_set_errhandler, comm, MPI_ERRORS_RETURN);
  return comm;
}

// All ranks are known to be here.
std::shared_ptr<Group> make_group(MPI_Comm parent, const MpiOptions& options, std::shared_ptr<Failure> failure) {
  const MPI_Comm comm = duplicate_of(parent);
  std::random_device random;
  uint64_t id = (static_cast<uint64_t>(random()) << 32) | random();
  ZEROSCHED_MPI_CALL(MPI_Bcast, &id, 1, MPI_UINT64_T, 0, comm);
  auto group = std::make_shared<Group>(comm, id, options, std::move(failure));
  Progress::instance().add(group);
  return group;
}

// MPI_Comm_dup cannot be given up, so it is only called once every rank has come.
void await_all_ranks(MPI_Comm parent, double timeout_seconds) {
  const auto start = Clock::now();
  MPI_Request request = MPI_REQUEST_NULL;
  ZEROSCHED_MPI_CALL(MPI_Ibarrier, parent, &request);
  Backoff backoff(Backoff::Kind::waiting);
  for (int done = 0; !done;) {
    ZEROSCHED_MPI_CALL(MPI_Test, &request, &done, MPI_STATUS_IGNORE);
    TORCH_CHECK(
        done || Clock::now() - start < std::chrono::duration<double>(timeout_seconds),
        "mpi: not every rank called mpi_communicator() within ",
        timeout_seconds,
        " s; every rank of the parent communicator must call it");
    if (!done) backoff.pause(false);
  }
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

MpiCommunicator::~MpiCommunicator() { Progress::instance().release(group_); }

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
  Progress::instance().drive_if_inline();
  return group_->failure();
}

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
  launch(operation)->wait();
}

at::Tensor MpiCommunicator::do_allocate(int64_t numel, at::ScalarType dtype, at::Device device) {
  TORCH_CHECK(
      device.is_cpu(),
      "mpi: allocate: this backend moves CPU tensors and has no memory on ",
      device,
      "; use a backend for that device");
  return empty_host_tensor(numel, dtype);
}

std::shared_ptr<Work> MpiCommunicator::do_reduce_scatter(
    const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) {
  require_cpu(flat, Collective::reduce_scatter);
  return launch(std::make_shared<ReduceScatter>(
      group_, make_header(Collective::reduce_scatter, label, &flat), std::vector<at::Tensor>{flat, shard_out}));
}

std::shared_ptr<Work> MpiCommunicator::do_all_gather(const at::Tensor& flat, CollectiveLabel label) {
  require_cpu(flat, Collective::all_gather);
  return launch(std::make_shared<AllGather>(
      group_, make_header(Collective::all_gather, label, &flat), std::vector<at::Tensor>{flat}));
}

std::shared_ptr<Work> MpiCommunicator::do_all_reduce(
    const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) {
  require_cpu(tensor, Collective::all_reduce);
  auto header = make_header(Collective::all_reduce, label, &tensor);
  header.reduction = static_cast<uint8_t>(op);
  return launch(std::make_shared<AllReduce>(group_, header, std::vector<at::Tensor>{tensor}));
}

std::shared_ptr<Work> MpiCommunicator::do_broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) {
  require_cpu(tensor, Collective::broadcast);
  auto header = make_header(Collective::broadcast, label, &tensor);
  header.root = root;
  return launch(std::make_shared<Broadcast>(group_, header, std::vector<at::Tensor>{tensor}));
}

std::shared_ptr<Work> MpiCommunicator::do_barrier(CollectiveLabel label) {
  return launch(std::make_shared<Barrier>(
      group_, make_header(Collective::barrier, label, nullptr), std::vector<at::Tensor>{}));
}

std::shared_ptr<Work> MpiCommunicator::launch(std::shared_ptr<Operation> operation) {
  group_->launch(operation);
  Progress::instance().notify(*group_);
  return operation;
}

std::shared_ptr<Communicator> make_mpi_communicator(MPI_Comm parent, MpiOptions options) {
  TORCH_CHECK(
      std::isfinite(options.timeout_seconds) && options.timeout_seconds > 0,
      "mpi: the timeout is ",
      options.timeout_seconds,
      " s; it must be positive and finite");
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  TORCH_CHECK(
      initialized && !finalized,
      "mpi: MPI is ",
      finalized ? "finalised already" : "not initialised",
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
  return detail::make_mpi_communicator(parent, options);
}

}  // namespace zerosched
