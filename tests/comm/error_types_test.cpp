// What a CommunicationError says beside its words, which is the same on every rank.
#include "comm/errors.h"
#include "comm/failure/cause.h"
#include "comm/member.h"
#include "comm/mpi/mpi_backend.h"
#include "support/gather.h"

#include <zerosched/communicator.h>
#include <zerosched/error.h>
#include <zerosched/mpi_communicator.h>

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <string>

namespace zerosched {
namespace {

using testing::common;

std::shared_ptr<Communicator> make(double timeout_seconds) {
  detail::MpiOptions options;
  options.timeout_seconds = timeout_seconds;
  auto communicator = detail::make_mpi_communicator(MPI_COMM_WORLD, options);
  communicator->barrier({"start"})->wait();
  testing::world_barrier();
  return communicator;
}

std::string text_of(int rank, const std::string& collective, const std::vector<int>& missing) {
  std::string text = "rank " + std::to_string(rank) + ", in '" + collective + "', without";
  for (const int each : missing) text += " " + std::to_string(each);
  return text;
}

// Of the CommunicationError that `call` throws; an empty string if it throws none.
template <typename Call>
std::string facts_of(const Call& call) {
  try {
    call();
  } catch (const CommunicationError& error) {
    return text_of(error.rank(), error.collective(), error.missing_ranks());
  }
  return {};
}

TEST(CommunicationErrors, NameTheRanksThatDoNotJoin) {
  MPI_Comm parent = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &parent);
  const auto join = [&] { mpi_communicator(parent, 1); };
  const int absent = testing::world_size() - 1;
  std::string facts;
  if (testing::world_rank() != absent) facts = facts_of(join);
  testing::world_barrier();
  if (testing::world_rank() == absent) facts = facts_of(join);
  EXPECT_EQ(common(facts), text_of(-1, "", {absent}));
}

TEST(CommunicationErrors, NameTheCollectiveAndTheRanksThatDoNotComeToIt) {
  const auto communicator = make(1);
  const bool comes = communicator->rank() == 0;
  std::vector<int> absent;
  for (int rank = 1; rank < communicator->size(); ++rank) absent.push_back(rank);
  std::string facts;
  if (comes) {
    facts = facts_of([&] {
      communicator->all_reduce(at::zeros({1}), ReduceOp::sum, {"norm", -1, 7})->wait();
    });
  } else {
    testing::wait_for_failure(*communicator);
    facts = facts_of([&] { communicator->barrier()->wait(); });
  }
  EXPECT_EQ(common(facts), text_of(-1, "all_reduce #1 'norm' (step 7)", absent));
}

TEST(CommunicationErrors, NameTheRankWhoseErrorItWas) {
  const auto communicator = make(20);
  const int fails = communicator->size() - 1;
  if (communicator->rank() == fails) communicator->abort("cannot read shard 17");
  testing::wait_for_failure(*communicator);
  EXPECT_EQ(common(facts_of([&] { communicator->check(); })), text_of(fails, "", {}));
}

TEST(CommunicationErrors, NameTheRankThatHasLeft) {
  const auto communicator = make(20);
  std::string facts;
  if (communicator->rank() == 1) {
    detail::leave(*communicator, "rank 1 has gone home");
    testing::wait_for_failure(*communicator);
    facts = facts_of([&] { communicator->check(); });
  } else {
    facts = facts_of([&] { communicator->barrier({"end"})->wait(); });
  }
  EXPECT_EQ(common(facts), text_of(1, "barrier #1 'end'", {1}));
  testing::world_barrier();
}

TEST(CommunicationErrors, NameTheFirstOfTwoCollectivesThatRanksAreIn) {
  const auto communicator = make(20);
  const bool other = communicator->rank() == 1;
  EXPECT_EQ(common(facts_of([&] { communicator->barrier({other ? "save" : "load"})->wait(); })),
      text_of(-1, "barrier #1 'load'", {}));
}

TEST(CommunicationErrors, AreErrors) {
  const CommunicationError error("a rank is gone", 3, "barrier #1", {3});
  EXPECT_STREQ(error.what_without_backtrace(), "a rank is gone");
  EXPECT_NE(dynamic_cast<const Error*>(&error), nullptr);
  EXPECT_NE(dynamic_cast<const c10::Error*>(&error), nullptr);
}

TEST(Cause, TravelsAsItIs) {
  for (const auto& cause : {detail::Cause{"", -1, "", {}}, detail::Cause{"text", 2, "barrier #3", {0, 7}},
           detail::Cause{std::string("\0\n", 2), 0, "", {1}}}) {
    const auto back = detail::parse_cause(to_bytes(cause));
    EXPECT_EQ(back.text, cause.text);
    EXPECT_EQ(back.rank, cause.rank);
    EXPECT_EQ(back.collective, cause.collective);
    EXPECT_EQ(back.missing_ranks, cause.missing_ranks);
  }
}

TEST(Cause, OfOtherBytesIsTheirText) {
  for (const std::string bytes : {"", "short", "longer than what stands before the text"})
    EXPECT_EQ(detail::parse_cause(bytes).text, bytes);
}

}  // namespace
}  // namespace zerosched
