#include <zerosched/communicator.h>

#include "base/check.h"
#include "comm/label.h"
#include "comm/member.h"

#include <atomic>

namespace zerosched {

namespace {

// What every argument check says first: backend, collective, label and rank.
std::string where(const Communicator& communicator, Collective kind, const CollectiveLabel& label) {
  return std::string(communicator.backend()) + ": " + detail::describe(kind, -1, label) + " on rank " +
         std::to_string(communicator.rank());
}

void check_flat(const Communicator& communicator, Collective kind, const CollectiveLabel& label,
    const at::Tensor& tensor) {
  ZEROSCHED_CHECK(tensor.defined(), where(communicator, kind, label), ": the tensor is undefined");
  ZEROSCHED_CHECK(tensor.layout() == at::kStrided && tensor.dim() == 1 && tensor.is_contiguous(),
      where(communicator, kind, label),
      ": needs a dense, contiguous, one-dimensional tensor, not one of shape ", tensor.sizes(),
      "; pass tensor.flatten() or the flat buffer it lives in");
}

void check_slices(
    const Communicator& communicator, Collective kind, const CollectiveLabel& label, const at::Tensor& flat) {
  ZEROSCHED_CHECK(flat.numel() % communicator.size() == 0, where(communicator, kind, label), ": ",
      flat.numel(), " elements cannot be cut into ", communicator.size(),
      " equal slices; pad the tensor to a multiple of the world size");
}

bool can_scatter(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

bool can_reduce(at::ScalarType dtype) {
  return can_scatter(dtype) || dtype == at::kInt || dtype == at::kLong || dtype == at::kByte;
}

}  // namespace

std::string_view name_of(Collective kind) {
  switch (kind) {
    case Collective::reduce_scatter:
      return "reduce_scatter";
    case Collective::all_gather:
      return "all_gather";
    case Collective::all_reduce:
      return "all_reduce";
    case Collective::broadcast:
      return "broadcast";
    case Collective::barrier:
      return "barrier";
  }
  return "unknown collective";
}

Traffic::Counter& Traffic::of(Collective kind) {
  switch (kind) {
    case Collective::reduce_scatter:
      return reduce_scatter;
    case Collective::all_gather:
      return all_gather;
    case Collective::all_reduce:
      return all_reduce;
    case Collective::broadcast:
      return broadcast;
    case Collective::barrier:
      break;
  }
  return barrier;
}

struct Communicator::TrafficCounters {
  struct Counter {
    std::atomic<int64_t> calls{0};
    std::atomic<int64_t> bytes{0};
  };
  std::array<Counter, kCollectiveKinds> counters;

  void add(Collective kind, int64_t bytes) {
    auto& counter = counters[static_cast<size_t>(kind)];
    counter.calls.fetch_add(1, std::memory_order_relaxed);
    counter.bytes.fetch_add(bytes, std::memory_order_relaxed);
  }
};

Work::~Work() = default;

Communicator::Communicator(int rank, int size, int local_rank)
    : rank_(rank), size_(size), local_rank_(local_rank), traffic_(std::make_unique<TrafficCounters>()) {}

Communicator::~Communicator() = default;

at::Tensor Communicator::allocate(int64_t numel, at::ScalarType dtype, at::Device device, Collective use) {
  check();
  ZEROSCHED_CHECK(numel >= 0, backend(), ": allocate on rank ", rank_, ": ", numel,
      " elements; the count must not be negative");
  return do_allocate(numel, dtype, device, use);
}

std::shared_ptr<Work> Communicator::reduce_scatter(
    const at::Tensor& flat, const at::Tensor& shard_out, CollectiveLabel label) {
  constexpr auto kind = Collective::reduce_scatter;
  check();
  check_flat(*this, kind, label, flat);
  check_flat(*this, kind, label, shard_out);
  check_slices(*this, kind, label, flat);
  ZEROSCHED_CHECK(shard_out.numel() == flat.numel() / size_, where(*this, kind, label), ": the shard has ",
      shard_out.numel(), " elements, but slices of the flat tensor have ", flat.numel() / size_, " (",
      flat.numel(), " elements over ", size_, " ranks)");
  ZEROSCHED_CHECK(shard_out.scalar_type() == flat.scalar_type() && shard_out.device() == flat.device(),
      where(*this, kind, label), ": the flat tensor is ", flat.scalar_type(), " on ", flat.device(),
      ", the shard ", shard_out.scalar_type(), " on ", shard_out.device(), "; they must be the same");
  ZEROSCHED_CHECK(can_scatter(flat.scalar_type()), where(*this, kind, label), ": sums of ",
      flat.scalar_type(), " are not offered; use Float, Double, BFloat16 or Half");
  auto work = do_reduce_scatter(flat, shard_out, label);
  traffic_->add(kind, static_cast<int64_t>(flat.nbytes()));
  return work;
}

std::shared_ptr<Work> Communicator::all_gather(const at::Tensor& flat, CollectiveLabel label) {
  constexpr auto kind = Collective::all_gather;
  check();
  check_flat(*this, kind, label, flat);
  check_slices(*this, kind, label, flat);
  auto work = do_all_gather(flat, label);
  traffic_->add(kind, static_cast<int64_t>(flat.nbytes()));
  return work;
}

std::shared_ptr<Work> Communicator::all_reduce(const at::Tensor& tensor, ReduceOp op, CollectiveLabel label) {
  constexpr auto kind = Collective::all_reduce;
  check();
  check_flat(*this, kind, label, tensor);
  ZEROSCHED_CHECK(can_reduce(tensor.scalar_type()), where(*this, kind, label), ": ", tensor.scalar_type(),
      " cannot be reduced; use Float, Double, BFloat16, Half, Int, Long or Byte");
  auto work = do_all_reduce(tensor, op, label);
  traffic_->add(kind, static_cast<int64_t>(tensor.nbytes()));
  return work;
}

std::shared_ptr<Work> Communicator::broadcast(const at::Tensor& tensor, int root, CollectiveLabel label) {
  constexpr auto kind = Collective::broadcast;
  check();
  check_flat(*this, kind, label, tensor);
  ZEROSCHED_CHECK(root >= 0 && root < size_, where(*this, kind, label), ": root ", root,
      " is not a rank; it must be from 0 to ", size_ - 1);
  auto work = do_broadcast(tensor, root, label);
  traffic_->add(kind, static_cast<int64_t>(tensor.nbytes()));
  return work;
}

std::shared_ptr<Work> Communicator::barrier(CollectiveLabel label) {
  check();
  auto work = do_barrier(label);
  traffic_->add(Collective::barrier, 0);
  return work;
}

void Communicator::check() const {
  if (!failure().empty()) detail::cause(*this).raise();
}

Traffic Communicator::traffic() const {
  Traffic snapshot;
  for (int i = 0; i < kCollectiveKinds; ++i) {
    const auto& counter = traffic_->counters[static_cast<size_t>(i)];
    auto& out = snapshot.of(static_cast<Collective>(i));
    out.calls = counter.calls.load(std::memory_order_relaxed);
    out.bytes = counter.bytes.load(std::memory_order_relaxed);
  }
  return snapshot;
}

}  // namespace zerosched
