#include <zerosched/mpi_communicator.h>

#include "comm/message_of.h"
#include "comm/mpi/check.h"
#include "comm/mpi/mpi_backend.h"
#include "session/job.h"
#include "session/launcher.h"
#include "session/report.h"
#include "session/time_limit.h"

#include <mpi.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include <unistd.h>

namespace zerosched::detail {

namespace {

// What the other ranks get to hear of an end and to report it themselves, before MPI_Abort kills them.
constexpr double kSecondsToHear = 0.3;
// What a rank that has heard leaves the one that it heard from, whose exit code is to be the job's: that of
// whoever is first to abort.
constexpr double kSecondsForOrigin = 2;

[[noreturn]] void abort_mpi(int exit_code) noexcept {
  std::fflush(stdout);
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

class MpiJob final : public Job {
 public:
  MpiJob(std::shared_ptr<Communicator> communicator, bool finalize)
      : communicator_(std::move(communicator)), failure_(mpi().failure_state()), finalize_(finalize) {}

  std::shared_ptr<Communicator> communicator() const override { return communicator_; }

  std::string failure() const override { return failure_->message_of_family(); }

  void finish() override {
    if (finalize_) {
      // MPI_Finalize cannot be given up and no longer hears of a rank that fails; this can and does.
      mpi().patient_barrier({"end of session"});
    }
    communicator_.reset();
    if (finalize_) {
      const int code = MPI_Finalize();
      TORCH_CHECK(code == MPI_SUCCESS, "MPI_Finalize failed: error ", code);
    }
  }

  [[noreturn]] void end(const std::string& message, int exit_code) noexcept override {
    abort_mpi_communicators(message, patience());
    abort_mpi(exit_code);
  }

  void end_soon(const std::string& message, int exit_code) noexcept override {
    int level = MPI_THREAD_SINGLE;
    MPI_Query_thread(&level);
    if (level < MPI_THREAD_MULTIPLE) end(message, exit_code);
    // The session is gone while its communicator still has to tell the others.
    new std::shared_ptr<Communicator>(communicator_);
    std::thread([message, exit_code, seconds = patience()] {
      abort_mpi_communicators(message, seconds);
      abort_mpi(exit_code);
    }).detach();
    // Leaving main before that thread is done would end the process with main's exit code.
    std::atexit([] {
      for (;;) pause();
    });
  }

 private:
  double patience() const {
    return failure_->origin_of_family() == Failure::Origin::elsewhere ? kSecondsForOrigin : kSecondsToHear;
  }

  MpiCommunicator& mpi() { return static_cast<MpiCommunicator&>(*communicator_); }

  std::shared_ptr<Communicator> communicator_;
  std::shared_ptr<Failure> failure_;  // of that, and is still there once that is gone
  bool finalize_;
};

// What mpi_communicator() takes at most beyond its timeout to find out which ranks are missing, and a moment.
constexpr double kSecondsToNameRanks = 4;

// Initialises MPI, which waits for all ranks.
void initialize(int* argc, char*** argv, double timeout_seconds) {
  {
    const TimeLimit limit(launched_rank(), timeout_seconds,
        c10::str("session: MPI_Init_thread has not ended after ", timeout_seconds,
            " s. It ends once every process of the job is in it: look for one that did not start, is stopped "
            "or has not come to its Session, and whether the hosts reach each other; if ranks only start "
            "slowly, set a longer SessionOptions::timeout"));
    int provided = MPI_THREAD_SINGLE;
    ZEROSCHED_MPI_CALL(MPI_Init_thread, argc, argv, MPI_THREAD_MULTIPLE, &provided);
  }
  int size = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_size, MPI_COMM_WORLD, &size);
  const int launched = launched_processes();
  if (size >= launched) return;
  MPI_Finalize();  // every rank of this world is here
  TORCH_CHECK(false, "session: ", launched, " processes were started, but MPI has connected ", size,
      "; start the program with the mpirun of the MPI that zerosched was built with, or with \"srun "
      "--mpi=pmix\"");
}

// What keeps a rank from joining is known to that rank only, or not to the ranks that are missing: no error for
// handlers, of which the other ranks' would wait for this one.
std::shared_ptr<Communicator> join(double timeout_seconds, bool flat_collectives) {
  int rank = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_rank, MPI_COMM_WORLD, &rank);
  const double longest = 2 * timeout_seconds + kSecondsToNameRanks;
  const TimeLimit limit(rank, longest,
      c10::str("session: the communicator of the job is not there after ", longest,
          " s, although every rank has come to it: one was stopped or cut off meanwhile"));
  try {
    return mpi_communicator(MPI_COMM_WORLD, timeout_seconds, flat_collectives);
  } catch (const std::exception& error) {
    report_end(rank, "session: the job cannot be joined: " + message_of(error));
    std::this_thread::sleep_for(std::chrono::duration<double>(kSecondsToHear));
    abort_mpi(kFailureExitCode);
  }
}

}  // namespace

std::unique_ptr<Job> make_mpi_job(int* argc, char*** argv, double timeout_seconds, bool flat_collectives) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  int finalized = 0;
  MPI_Finalized(&finalized);
  TORCH_CHECK(!finalized,
      "session: MPI is finalised already, which it can be once in a process; for several sessions one after "
      "the other call MPI_Init_thread before the first and MPI_Finalize after the last");
  if (!initialized) initialize(argc, argv, timeout_seconds);
  return std::make_unique<MpiJob>(join(timeout_seconds, flat_collectives), !initialized);
}

}  // namespace zerosched::detail
