// A finite-element code that learns a material law, stress as a function of strain, in float64. MPI is the code's own,
// and its elements move between ranks: now and then a rank has none. It stops when the misfit over all elements is small,
// which all ranks see at the same step.
#include "engine/toy.h"
#include "support/run.h"
#include "trainers/plain.h"

#include <mpi.h>
#include <zerosched/mpi_communicator.h>

#include <torch/nn.h>

namespace zerosched::testing {
namespace {

constexpr double kLr = 0.02;
constexpr double kSmall = 0.2;
constexpr int64_t kMostSteps = 400;
constexpr int64_t kElements = 40;

struct Elements {
  at::Tensor strain, stress;  ///< [elements, 3]
  int64_t count() const { return strain.size(0); }
};

Elements mesh() {
  const at::Tensor strain = random_like(at::empty({kElements, 3}, at::kDouble), 0, 0, 0);
  const at::Tensor trace = strain.sum(1, true);
  return {strain, strain + 0.3 * trace + 0.1 * strain.square() * strain};
}

/// Every ten steps elements move: in turns a rank has none, and the next one twice its share.
Elements part(const Elements& mesh, int64_t step, int rank, int size) {
  const int64_t idle = size == 1 ? -1 : step / 10 % size;
  int64_t before = 0, all = 0, own = 0;
  for (int64_t r = 0; r < size; ++r) {
    const int64_t shares = r == idle ? 0 : r == (idle + 1) % size ? 2 : 1;
    if (r < rank) before += shares;
    if (r == rank) own = shares;
    all += shares;
  }
  const int64_t begin = kElements * before / all, end = kElements * (before + own) / all;
  return {mesh.strain.slice(0, begin, end), mesh.stress.slice(0, begin, end)};
}

at::Tensor misfit(torch::nn::Sequential& law, const Elements& elements) {
  return (law->forward(elements.strain) - elements.stress).square().sum(1).mean();
}

// What follows up to the reference is the trainer.

struct Fit {
  int64_t steps;
  double misfit;
};

enum class Idle {
  no_backward,   ///< a rank without elements has no loss
  empty_tensors  ///< or goes through all of it with tensors of no rows, whose mean is NaN
};

Fit fit(torch::nn::Sequential& law, AdamWScheduleFree& optimizer, MPI_Comm comm, Idle idle) {
  int rank = 0, size = 1;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  const Elements all = mesh();
  for (int64_t step = 0;; ++step) {
    const Elements mine = part(all, step, rank, size);
    double sums[] = {0, static_cast<double>(mine.count())};
    optimizer.zero_grad();
    optimizer.step_weight(sums[1]);
    if (mine.count() > 0 || idle == Idle::empty_tensors) {
      const at::Tensor loss = misfit(law, mine);
      loss.backward();
      if (mine.count() > 0) sums[0] = loss.item<double>() * sums[1];
    }
    optimizer.step();
    // The same sums on every rank, and so the same decision.
    MPI_Allreduce(MPI_IN_PLACE, sums, 2, MPI_DOUBLE, MPI_SUM, comm);
    if (sums[0] / sums[1] < kSmall || step + 1 == kMostSteps) return {step + 1, sums[0] / sums[1]};
  }
}

// The reference: one process that has all elements.

torch::nn::Sequential make_law() {
  torch::manual_seed(5);
  torch::nn::Sequential law(torch::nn::Linear(3, 12), torch::nn::Tanh(), torch::nn::Linear(12, 3));
  law->to(at::kDouble);
  return law;
}

Fit fit_plain(torch::nn::Sequential& law, PlainScheduleFree& optimizer) {
  const Elements all = mesh();
  for (int64_t step = 1;; ++step) {
    optimizer.zero_grad();
    const at::Tensor loss = misfit(law, all);
    loss.backward();
    optimizer.step();
    const auto value = loss.item<double>();
    if (value < kSmall || step == kMostSteps) return {step, value};
  }
}

void fit_and_compare(Idle idle, const ShardingOptions& sharding) {
  MPI_Comm own = MPI_COMM_NULL;  // a code's communicator is seldom MPI_COMM_WORLD itself
  MPI_Comm_dup(MPI_COMM_WORLD, &own);
  {
    torch::nn::Sequential law = make_law(), plain_law = make_law();
    AdamWScheduleFree optimizer(*law, mpi_communicator(own, 20), AdamWScheduleFreeOptions(kLr), sharding);
    PlainScheduleFree plain(parameters_of(*plain_law), kLr);
    const Fit sharded = fit(law, optimizer, own, idle);
    const Fit expected = fit_plain(plain_law, plain);
    EXPECT_EQ(sharded.steps, expected.steps);
    EXPECT_GT(sharded.steps, 30);  // every rank was idle at least once
    EXPECT_LT(sharded.steps, kMostSteps);
    EXPECT_NEAR(sharded.misfit, expected.misfit, 1e-9 * expected.misfit);
    expect_close(full_state(optimizer), plain.reference(), 1e-9);
    const auto evaluation = optimizer.eval_scope();
    plain.set("x");
    const auto value = misfit(law, mesh()).item<double>();
    EXPECT_NEAR(value, misfit(plain_law, mesh()).item<double>(), 1e-9 * value);
  }
  MPI_Comm_free(&own);
}

TEST(FiniteElements, IdleRanksDoNotCount) { fit_and_compare(Idle::no_backward, buckets_of(200)); }
TEST(FiniteElements, IdleRanksDoNotCountWithoutHooks) {
  fit_and_compare(Idle::no_backward, buckets_of(200).overlap_backward(false));
}
TEST(FiniteElements, RanksWithEmptyTensorsDoNotCount) {
  fit_and_compare(Idle::empty_tensors, buckets_of(200));
}
TEST(FiniteElements, RanksWithEmptyTensorsDoNotCountWithoutHooks) {
  fit_and_compare(Idle::empty_tensors, buckets_of(200).overlap_backward(false));
}

// Without this the tests above could pass by having no idle ranks.
TEST(FiniteElements, EveryStepHasAnIdleRank) {
  const Elements all = mesh();
  for (int size = 1; size <= 3; ++size) {
    for (int64_t step = 0; step < 40; ++step) {
      int64_t count = 0, idle = 0;
      for (int rank = 0; rank < size; ++rank) {
        const auto mine = part(all, step, rank, size).count();
        count += mine;
        idle += mine == 0 ? 1 : 0;
      }
      EXPECT_EQ(count, kElements);
      EXPECT_EQ(idle, size == 1 ? 0 : 1);
    }
  }
}

}  // namespace
}  // namespace zerosched::testing

// As codes do that call MPI from their main thread only; zerosched has no thread of its own then.
int main(int argc, char** argv) {
  return zerosched::testing::run_all_tests(argc, argv, zerosched::testing::ThreadLevel::funneled);
}
