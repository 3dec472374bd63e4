#include "support/run.h"

#include "support/gather.h"
#include "support/skips.h"
#include "support/world.h"

#include <gtest/gtest.h>

#ifdef ZEROSCHED_TEST_MPI
#include <mpi.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#include <cstdio>
#include <sstream>
#include <string>

namespace zerosched::testing {

namespace {

// Collects what fails on this rank and hands it to rank 0 at the end of each test.
class GatherFailures final : public ::testing::EmptyTestEventListener {
 private:
  void OnTestStart(const ::testing::TestInfo&) override { text_.str(""); }

  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed() || gathering_) return;
    text_ << (result.file_name() == nullptr ? "(unknown file)" : result.file_name()) << ":"
          << result.line_number() << ": " << result.message() << "\n";
  }

  void OnTestEnd(const ::testing::TestInfo&) override {
    const auto texts = gather_texts(text_.str());
    gathering_ = true;
    for (size_t rank = 0; rank < texts.size(); ++rank) {
      if (static_cast<int>(rank) == world_rank() || texts[rank].empty()) continue;
      // Every rank records it, so that every rank exits with the same code.
      ADD_FAILURE() << "on rank " << rank << ":\n" << texts[rank];
    }
    gathering_ = false;
    forget_world();
  }

  std::ostringstream text_;
  bool gathering_ = false;
};

// The reasons of all ranks, on rank 0, which prints no other rank's cases. Whether there are any, on every rank.
bool tell_skips(const std::string& own) {
  const auto texts = gather_texts(own);
  bool skipped = false;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    skipped = skipped || !texts[rank].empty();
    if (world_rank() != 0 || texts[rank].empty()) continue;
    if (rank == 0) {
      std::fputs(own.c_str(), stdout);
    } else if (texts[rank] != own) {
      std::printf("on rank %zu:\n%s", rank, texts[rank].c_str());
    }
  }
  return skipped;
}

void initialize_mpi(int argc, char** argv, ThreadLevel level) {
#ifdef ZEROSCHED_TEST_MPI
  const int wanted = level == ThreadLevel::multiple     ? MPI_THREAD_MULTIPLE
                     : level == ThreadLevel::serialized ? MPI_THREAD_SERIALIZED
                                                        : MPI_THREAD_FUNNELED;
  int provided = 0;
#ifdef __SANITIZE_ADDRESS__
  const __lsan::ScopedDisabler not_ours;  // what Open MPI loses there
#endif
  MPI_Init_thread(&argc, &argv, wanted, &provided);
#else
  static_cast<void>(argc), static_cast<void>(argv), static_cast<void>(level);
#endif
}

}  // namespace

int run_all_tests(int argc, char** argv, ThreadLevel level) {
  initialize_mpi(argc, argv, level);
  ::testing::InitGoogleTest(&argc, argv);
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if (world_rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
  }
  auto* skips = new Skips;
  listeners.Append(skips);  // owned by GoogleTest, as the next one
  listeners.Append(new GatherFailures);
  const int result = RUN_ALL_TESTS();
  const bool skipped = tell_skips(skips->text());
  std::fflush(stdout);  // the first rank that leaves with another code than 0 makes mpirun end the others
  bool failed = false;
  for (const auto& text : gather_texts(result == 0 ? "" : "failed")) failed = failed || !text.empty();
#ifdef __SANITIZE_ADDRESS__
  // Not at the end of the process: MPI_Finalize unloads Open MPI's plugins, and what they hold would count as lost.
  __lsan_do_leak_check();
#endif
#ifdef ZEROSCHED_TEST_MPI
  MPI_Finalize();
#endif
  return failed ? 1 : skipped ? kSkipped : 0;
}

}  // namespace zerosched::testing
