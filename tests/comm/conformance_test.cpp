// What every communicator must do, run over each of them on whatever number of ranks the program has.
#include "comm/conformance.h"
#include "base/blocked_time.h"
#include "comm/agree.h"
#include "comm/errors.h"
#include "support/gather.h"
#include "support/world.h"

#include <zerosched/communicator.h>

#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace zerosched {
namespace {

using testing::Backend;
using testing::error_of;
using ::testing::TestParamInfo;

class Conformance : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (const auto reason = testing::why_skip_conformance(GetParam()); !reason.empty()) {
      GTEST_SKIP() << reason;
    }
    communicator_ = GetParam().make();
  }
  void TearDown() override {
    communicator_.reset();
    testing::forget_world();
    GetParam().check_nothing_left();
  }
  Communicator& communicator() { return *communicator_; }
  int rank() const { return communicator_->rank(); }
  int size() const { return communicator_->size(); }
  // NCCL sums in an order and a precision of its own.
  bool is_nccl() const { return std::string(communicator_->backend()) == "nccl"; }
  // Tensors are made and looked at on the host, and take part on the backend's device.
  at::Tensor to_device(const at::Tensor& tensor) const {
    if (!GetParam().allocates) return GetParam().to_device(tensor);
    return communicator_->allocate(tensor.numel(), tensor.scalar_type(), GetParam().device).copy_(tensor);
  }
  at::Tensor to_host(const at::Tensor& tensor) const { return GetParam().to_host(tensor); }

  std::shared_ptr<Communicator> communicator_;
};

// Values that any rank can compute for any other; their sums round in every floating-point type.
at::Tensor contribution(int rank, int64_t numel, at::ScalarType dtype) {
  auto values = at::empty({numel}, at::kDouble);
  auto* data = values.mutable_data_ptr<double>();
  uint64_t state = 88172645463325252u + static_cast<uint64_t>(rank) * 7919u;
  for (int64_t i = 0; i < numel; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    data[i] = static_cast<double>(state >> 11) / 9007199254740992.0 * 2 - 1;
  }
  return values.to(dtype);
}

// A balanced binary tree over the addends.
at::Tensor tree_sum(const std::vector<at::Tensor>& addends, size_t lo, size_t hi) {
  if (hi - lo == 1) return addends[lo].clone();
  size_t half = 1;
  while (half * 2 < hi - lo) half *= 2;
  return tree_sum(addends, lo, lo + half).add_(tree_sum(addends, lo + half, hi));
}

// The documented order: a tree over the ranks of each host, and one over the hosts; 16-bit types in float32.
at::Tensor documented_sum(const Backend& backend, int ranks, int64_t numel, at::ScalarType dtype) {
  std::map<int, std::vector<at::Tensor>> by_host;
  std::vector<int> hosts;
  for (int rank = 0; rank < ranks; ++rank) {
    const int host = backend.host_of_rank.empty() ? 0 : backend.host_of_rank[static_cast<size_t>(rank)];
    const auto own = contribution(rank, numel, dtype);
    if (by_host[host].empty()) hosts.push_back(host);
    by_host[host].push_back(own.element_size() == 2 ? own.to(at::kFloat) : own);
  }
  std::vector<at::Tensor> sums;
  for (const int host : hosts) sums.push_back(tree_sum(by_host[host], 0, by_host[host].size()));
  return tree_sum(sums, 0, sums.size());
}

TEST_P(Conformance, ReduceScatterSumsInTreeOrder) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const int64_t slice : {0, 1, 7, 64, 1000, 100003}) {
      if (slice > 1000 && std::string(GetParam().name) == "mpi_with_small_counts") continue;
      const auto flat = to_device(contribution(rank(), slice * size(), dtype));
      auto shard = communicator().allocate(slice, dtype, GetParam().device);
      communicator().reduce_scatter(flat, shard, {"gradients", 1, slice})->wait();
      const auto wanted = documented_sum(GetParam(), size(), slice * size(), dtype)
                              .to(dtype)
                              .narrow(0, rank() * slice, slice);
      const double rounding = dtype == at::kDouble ? 1e-14 : dtype == at::kFloat ? 1e-5 : 0.03;
      EXPECT_TRUE(is_nccl() ? at::allclose(to_host(shard), wanted, rounding, rounding)
                            : at::equal(to_host(shard), wanted))
          << dtype << " slice of " << slice;
    }
  }
}

TEST_P(Conformance, ReduceScatterOfEqualGradientsIsExactForPowersOfTwo) {
  const auto gradient = contribution(5, 999 * size(), at::kFloat);
  auto device_shard = to_device(at::empty({999}, at::kFloat));
  communicator().reduce_scatter(to_device(gradient), device_shard)->wait();
  const auto shard = to_host(device_shard);
  const auto wanted = gradient.narrow(0, rank() * 999, 999).mul(size());
  const bool power_of_two = (size() & (size() - 1)) == 0;
  EXPECT_TRUE(power_of_two ? at::equal(shard, wanted) : at::allclose(shard, wanted, 1e-6, 1e-7));
}

TEST_P(Conformance, ReduceScatterMayWriteIntoItsOwnSlice) {
  auto flat = to_device(contribution(rank(), 5000 * size(), at::kFloat));
  const auto sum = documented_sum(GetParam(), size(), 5000 * size(), at::kFloat);
  const auto own = flat.narrow(0, rank() * 5000, 5000);
  communicator().reduce_scatter(flat, own)->wait();
  const auto wanted = sum.narrow(0, rank() * 5000, 5000);
  EXPECT_TRUE(is_nccl() ? at::allclose(to_host(own), wanted, 1e-5, 1e-6) : at::equal(to_host(own), wanted));
}

TEST_P(Conformance, AllGatherIsInPlaceForAnyDtype) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kByte, at::kBool, at::kLong,
           at::kShort, at::kComplexFloat}) {
    for (const int64_t slice : {0, 1, 13, 4099}) {
      auto flat = at::zeros({slice * size()}, dtype);
      std::vector<at::Tensor> slices;
      for (int r = 0; r < size(); ++r) {
        slices.push_back(at::arange(slice, at::kLong).add(r + 1).to(dtype));
      }
      flat.narrow(0, rank() * slice, slice).copy_(slices[static_cast<size_t>(rank())]);
      const auto on_device = to_device(flat);
      communicator().all_gather(on_device, {"parameters"})->wait();
      flat = to_host(on_device);
      for (int r = 0; r < size(); ++r) {
        EXPECT_TRUE(at::equal(flat.narrow(0, r * slice, slice), slices[static_cast<size_t>(r)]))
            << dtype << " slice " << r << " of " << slice;
      }
    }
  }
}

TEST_P(Conformance, AllReduce) {
  for (const auto dtype :
      {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kInt, at::kLong, at::kByte}) {
    for (const int64_t numel : {0, 1, 5, 1027}) {
      // Small whole numbers: exact in every dtype and every order of summation.
      const auto base = at::arange(numel, at::kLong).remainder(16);
      const auto values = base.add(rank()).to(dtype);
      const auto reduced = [&](ReduceOp op) {
        const auto tensor = to_device(values.clone());
        communicator().all_reduce(tensor, op)->wait();
        return to_host(tensor);
      };
      const auto sum = reduced(ReduceOp::sum);
      const auto max = reduced(ReduceOp::max);
      const auto min = reduced(ReduceOp::min);
      EXPECT_TRUE(at::equal(sum, base.mul(size()).add(size() * (size() - 1) / 2).to(dtype))) << dtype;
      EXPECT_TRUE(at::equal(max, base.add(size() - 1).to(dtype))) << dtype;
      EXPECT_TRUE(at::equal(min, base.to(dtype))) << dtype;
    }
  }
}

TEST_P(Conformance, AllReduceRounds16BitSumsOnce) {
  if (is_nccl()) return;
  // 256 + 1 + 1 is 258 in bfloat16, but 256 if each addition rounds.
  auto value = to_device(at::full({3}, rank() == 0 ? 256.0 : 1.0, at::kBFloat16));
  communicator().all_reduce(value)->wait();
  EXPECT_TRUE(at::equal(to_host(value), at::full({3}, 255.0 + size(), at::kFloat).to(at::kBFloat16)));
}

TEST_P(Conformance, BroadcastFromEveryRoot) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kBool, at::kChar}) {
    for (const int64_t numel : {0, 1, 29, 5003}) {
      for (int root = 0; root < size(); ++root) {
        auto tensor = to_device(at::arange(numel, at::kLong).add(rank()).remainder(2).to(dtype));
        const auto wanted = at::arange(numel, at::kLong).add(root).remainder(2).to(dtype);
        communicator().broadcast(tensor, root, {"tensor", root})->wait();
        EXPECT_TRUE(at::equal(to_host(tensor), wanted)) << dtype << " root " << root;
      }
    }
  }
}

TEST_P(Conformance, BarrierWaitsForAll) {
  communicator().barrier({"start"})->wait();
  const auto work = communicator().barrier();
  work->wait();
  EXPECT_TRUE(work->done());
}

// What Timings::wait_between_steps is made of.
TEST_P(Conformance, TimeThatTheHostIsBlockedInWaitIsCounted) {
  constexpr auto kNap = std::chrono::milliseconds(100);
  communicator().barrier({"start"})->wait();
  const auto before = detail::waited();
  if (rank() == 0) std::this_thread::sleep_for(kNap);
  communicator().barrier()->wait();
  const auto waited = detail::waited() - before;
  if (rank() == 0) {
    EXPECT_LT(waited, kNap / 2);
  } else {
    EXPECT_GT(waited, kNap / 2);
  }
  std::thread([] { EXPECT_EQ(detail::waited().count(), 0) << "another thread's"; }).join();
}

// Of two of them the same sign and tag stand for both, and the older takes longer.
TEST_P(Conformance, MoreInFlightThanThereAreTags) {
  const int64_t large = 1000003, small = 3;
  std::vector<at::Tensor> gathered;
  std::vector<std::shared_ptr<Work>> works;
  for (int i = 0; i < 1100; ++i) {
    const int64_t slice = i == 0 ? large : small;
    const auto own = at::zeros({slice * size()}, at::kFloat);
    own.narrow(0, rank() * slice, slice).fill_(rank() + i);
    gathered.push_back(to_device(own));
    works.push_back(communicator().all_gather(gathered.back(), {"p", i}));
  }
  for (const auto& work : works) work->wait();
  for (int i = 0; i < 1100; ++i) {
    const auto all = to_host(gathered[static_cast<size_t>(i)]);
    for (int r = 0; r < size(); ++r) {
      const int64_t slice = all.numel() / size();
      EXPECT_EQ(all[r * slice + slice - 1].item().toDouble(), r + i);
    }
  }
}

TEST_P(Conformance, ManyInFlightAndWaitedForInAnyOrder) {
  constexpr int kCount = 12;
  std::vector<std::shared_ptr<Work>> works;
  std::vector<at::Tensor> shards, gathered, sums;
  for (int i = 0; i < kCount; ++i) {
    const int64_t slice = 100 + 700 * (i % 4);
    shards.push_back(to_device(at::empty({slice}, at::kFloat)));
    const auto flat = to_device(at::full({slice * size()}, i + 1.0, at::kFloat));
    works.push_back(communicator().reduce_scatter(flat, shards.back(), {"g", i}));
    const auto own = at::zeros({slice * size()}, at::kFloat);
    own.narrow(0, rank() * slice, slice).fill_(rank() + i);
    gathered.push_back(to_device(own));
    works.push_back(communicator().all_gather(gathered.back(), {"p", i}));
    sums.push_back(to_device(at::full({1}, i + 0.0, at::kDouble)));
    works.push_back(communicator().all_reduce(sums.back(), ReduceOp::sum, {"s", i}));
  }
  for (auto work = works.rbegin(); work != works.rend(); ++work) (*work)->wait();
  for (int i = 0; i < kCount; ++i) {
    const auto index = static_cast<size_t>(i);
    const auto shard = to_host(shards[index]);
    EXPECT_TRUE(at::equal(shard, at::full_like(shard, (i + 1.0) * size())));
    EXPECT_EQ(to_host(sums[index]).item().toDouble(), i * size());
    const auto all = to_host(gathered[index]);
    for (int r = 0; r < size(); ++r) {
      const int64_t slice = shard.numel();
      EXPECT_EQ(all[r * slice + slice - 1].item().toDouble(), r + i);
    }
  }
}

TEST_P(Conformance, WorkMayBeDroppedBeforeItEnds) {
  {
    auto shard = to_device(at::empty({50000}, at::kFloat));
    communicator().reduce_scatter(to_device(at::full({50000 * size()}, 2.0, at::kFloat)), shard);
  }
  communicator().barrier()->wait();
  auto again = to_device(at::empty({1}, at::kFloat));
  communicator().reduce_scatter(to_device(at::full({size()}, 1.0, at::kFloat)), again)->wait();
  EXPECT_EQ(to_host(again).item().toDouble(), size());
}

TEST_P(Conformance, DuplicatesDoNotMix) {
  const auto other = communicator().duplicate();
  EXPECT_EQ(other->rank(), rank());
  EXPECT_EQ(other->size(), size());
  EXPECT_EQ(other->local_rank(), communicator().local_rank());
  auto a = to_device(at::full({3}, 1.0, at::kFloat));
  auto b = to_device(at::full({4}, 10.0, at::kFloat));
  std::shared_ptr<Work> first, second;
  // Two ranks may interleave two communicators differently; not those of NCCL, whose kernels wait for each
  // other.
  if (rank() % 2 == 0 || is_nccl()) {
    first = communicator().all_reduce(a);
    second = other->all_reduce(b);
  } else {
    second = other->all_reduce(b);
    first = communicator().all_reduce(a);
  }
  second->wait();
  first->wait();
  EXPECT_EQ(to_host(a)[0].item().toDouble(), size());
  EXPECT_EQ(to_host(b)[0].item().toDouble(), 10 * size());
  EXPECT_EQ(communicator().traffic().all_reduce.calls, 1);
  EXPECT_EQ(other->traffic().all_reduce.calls, 1);
}

TEST_P(Conformance, ManyDuplicatesComeAndGo) {
  // NCCL's own threads take half a second to end each.
  for (int i = 0; i < (is_nccl() ? 8 : 100); ++i) {
    const auto other = communicator().duplicate();
    if (i % 4 == 0) other->barrier()->wait();
  }
}

TEST_P(Conformance, ThreadsMayUseDuplicatesAtOnceWhereTheTransportAllowsIt) {
  const auto other = communicator().duplicate();
  double sum = 0;
  const auto one = to_device(at::full({1}, 1.0, at::kDouble)),
             another = to_device(at::full({1}, 1.0, at::kDouble));
  const auto use = [this](Communicator& mine, const at::Tensor& value, double& out) {
    for (int i = 0; i < 20; ++i) mine.all_reduce(value)->wait();
    out = to_host(value).item().toDouble();
  };
  double theirs = 0;
  if (testing::threads_may_call_mpi() && !is_nccl()) {
    std::thread thread([&] { use(*other, another, theirs); });
    use(communicator(), one, sum);
    thread.join();
  } else {
    use(*other, another, theirs);
    use(communicator(), one, sum);
  }
  EXPECT_EQ(sum, std::pow(size(), 20));
  EXPECT_EQ(theirs, std::pow(size(), 20));
}

TEST_P(Conformance, CountsTraffic) {
  auto flat = to_device(at::zeros({size() * 10}, at::kFloat));
  auto shard = to_device(at::empty({10}, at::kFloat));
  communicator().reduce_scatter(flat, shard)->wait();
  communicator().all_gather(flat)->wait();
  communicator().all_gather(flat)->wait();
  auto half = to_device(at::zeros({6}, at::kBFloat16));
  communicator().all_reduce(half)->wait();
  communicator().broadcast(half, 0)->wait();
  communicator().barrier()->wait();
  const auto duplicate = communicator().duplicate();
  auto traffic = communicator().traffic();
  EXPECT_EQ(traffic.reduce_scatter.calls, 1);
  EXPECT_EQ(traffic.reduce_scatter.bytes, size() * 40);
  EXPECT_EQ(traffic.all_gather.calls, 2);
  EXPECT_EQ(traffic.all_gather.bytes, 2 * size() * 40);
  EXPECT_EQ(traffic.all_reduce.bytes, 12);
  EXPECT_EQ(traffic.broadcast.bytes, 12);
  EXPECT_EQ(traffic.barrier.calls, 1);
  EXPECT_EQ(traffic.barrier.bytes, 0);
  EXPECT_EQ(&traffic.of(Collective::all_gather), &traffic.all_gather);
  EXPECT_EQ(duplicate->traffic().reduce_scatter.calls, 0);
}

TEST_P(Conformance, RefusesWrongArguments) {
  const auto flat = at::zeros({size() * 4}, at::kFloat);
  const std::string where = " on rank " + std::to_string(rank());
  const auto expect_error = [&](const std::string& error, const std::string& part) {
    EXPECT_EQ(error.rfind(communicator().backend(), 0), 0u) << error;
    EXPECT_NE(error.find(where), std::string::npos) << error;
    EXPECT_NE(error.find(part), std::string::npos) << error;
  };
  auto& c = communicator();
  expect_error(error_of([&] {
    c.reduce_scatter(flat, at::empty({5}, at::kFloat), {"g", 3, 12});
  }),
      "reduce_scatter 'g' (bucket 3, step 12)");
  expect_error(error_of([&] { c.reduce_scatter(flat, at::empty({4}, at::kDouble)); }), "must be the same");
  expect_error(error_of([&] { c.reduce_scatter(flat.to(at::kInt), at::empty({4}, at::kInt)); }), "Int");
  expect_error(error_of([&] { c.all_gather(flat.view({2, -1})); }), "one-dimensional");
  expect_error(error_of([&] { c.all_gather(at::Tensor()); }), "undefined");
  expect_error(error_of([&] { c.all_reduce(at::zeros({8}, at::kFloat).slice(0, 0, 8, 2)); }), "contiguous");
  expect_error(error_of([&] { c.all_reduce(at::zeros({8}, at::kBool)); }), "Bool");
  expect_error(error_of([&] { c.broadcast(flat, size()); }), "root");
  expect_error(error_of([&] { c.broadcast(flat, -1); }), "root");
  expect_error(error_of([&] { c.allocate(-1, at::kFloat, at::kCPU); }), "negative");
  if (size() > 1) expect_error(error_of([&] { c.all_gather(at::zeros({size() + 1})); }), "equal slices");
  // None of these was launched: the communicator still works.
  c.barrier()->wait();
  EXPECT_EQ(c.traffic().reduce_scatter.calls, 0);
}

TEST_P(Conformance, AllocatesFlatMemory) {
  for (const int64_t numel : {0, 3, 3000000}) {
    for (const auto device : {at::Device(at::kCPU), GetParam().device}) {
      const auto tensor = communicator().allocate(numel, at::kFloat, device);
      EXPECT_EQ(tensor.numel(), numel);
      EXPECT_EQ(tensor.dim(), 1);
      EXPECT_EQ(tensor.scalar_type(), at::kFloat);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 64, 0u);
    }
  }
}

TEST_P(Conformance, AbortedCommunicatorThrowsTheMessageFromEveryCall) {
  communicator().check();
  EXPECT_EQ(communicator().failure(), "");
  testing::world_barrier();
  communicator().abort("rank 0: disk full");
  communicator().abort("a later message");
  auto tensor = at::zeros({size()}, at::kFloat);
  auto shard = at::zeros({1}, at::kFloat);
  auto& c = communicator();
  EXPECT_EQ(c.failure(), "rank 0: disk full");
  for (const auto& error : {error_of([&] { c.check(); }), error_of([&] { c.reduce_scatter(tensor, shard); }),
           error_of([&] { c.all_gather(tensor); }), error_of([&] { c.all_reduce(tensor); }),
           error_of([&] { c.broadcast(tensor, 0); }), error_of([&] { c.barrier(); }),
           error_of([&] { c.duplicate(); }), error_of([&] { c.allocate(1, at::kFloat, at::kCPU); })}) {
    EXPECT_EQ(error, "rank 0: disk full");
  }
}

TEST_P(Conformance, AgreeThrowsTheLowestRanksErrorEverywhere) {
  detail::agree(communicator(), "");
  const bool fails = rank() == size() - 1 || rank() == size() - 2;
  const auto error =
      error_of([&] { detail::agree(communicator(), fails ? std::string(5000, 'x') + "end" : ""); });
  EXPECT_EQ(error, "rank " + std::to_string(std::max(0, size() - 2)) + ": " + std::string(5000, 'x') + "end");
  detail::agree(communicator(), "");
  EXPECT_EQ(detail::broadcast_bytes(communicator(), rank() == 0 ? "hello" : "", 0), "hello");
  EXPECT_EQ(detail::broadcast_bytes(communicator(), "", 0), "");
}

TEST_P(Conformance, CpuTensorsTakePartToo) {
  auto value = at::full({5}, rank() + 1.0, at::kFloat);
  communicator().all_reduce(value)->wait();
  EXPECT_EQ(value[4].item().toDouble(), size() * (size() + 1) / 2);
  communicator().broadcast(value.fill_(rank()), size() - 1)->wait();
  EXPECT_EQ(value[0].item().toDouble(), size() - 1);
  EXPECT_EQ(communicator().traffic().all_reduce.calls, 1);
  EXPECT_EQ(communicator().traffic().all_reduce.bytes, 20);
}

INSTANTIATE_TEST_SUITE_P(Backends, Conformance, ::testing::ValuesIn(testing::conformance_backends()),
    [](const TestParamInfo<Backend>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace zerosched
