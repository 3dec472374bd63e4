#include "base/check.h"
#include "base/message_of.h"
#include "base/owner_process.h"
#include "base/start_thread.h"
#include "comm/failure/deadlines.h"
#include "comm/failure/report_end.h"
#include "comm/mpi/check.h"
#include "comm/mpi/end_job.h"
#include "comm/mpi/mpi_backend.h"
#include "session/crowding.h"
#include "session/job.h"
#include "session/launcher.h"
#include "session/time_limit.h"

#include <mpi.h>

#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include <unistd.h>

namespace zerosched::detail {

namespace {

class MpiJob final : public Job {
 public:
  MpiJob(std::shared_ptr<Communicator> communicator, bool finalize)
      : communicator_(std::move(communicator)),
        size_(communicator_->size()),
        failure_(mpi().failure_state()),
        finalize_(finalize) {}

  std::shared_ptr<Communicator> communicator() const override { return communicator_; }

  Cause failure() const override { return size_ == 1 ? Cause() : failure_->cause_of_family(); }

  void finish() override {
    if (finalize_ && size_ > 1) {
      mpi().leave_others(
          "rank " + std::to_string(communicator_->rank()) +
          " has come to the end of its Session; every rank must call the same collectives before");
      // MPI_Finalize cannot be given up and no longer hears of a rank that fails; this can and does.
      mpi().patient_barrier({"end of session"});
    }
    communicator_.reset();
    if (finalize_) {
      const int code = MPI_Finalize();
      ZEROSCHED_CHECK(code == MPI_SUCCESS, "MPI_Finalize failed: error ", code);
    }
  }

  void tell(const Cause& cause) noexcept override { abort_mpi_communicators(cause, patience()); }

  [[noreturn]] void end(const Cause& cause, int exit_code) noexcept override {
    tell(cause);
    end_mpi_job(exit_code);
  }

  void end_soon(const Cause& cause, int exit_code) noexcept override {
    int level = MPI_THREAD_SINGLE;
    MPI_Query_thread(&level);
    if (level < MPI_THREAD_MULTIPLE) end(cause, exit_code);
    // The session is gone while its communicator still has to tell the others.
    new std::shared_ptr<Communicator>(communicator_);
    try {
      start_thread([cause, exit_code, seconds = patience()] {
        abort_mpi_communicators(cause, seconds);
        end_mpi_job(exit_code);
      }).detach();
    } catch (const std::exception&) {
      end(cause, exit_code);  // where there can be no more threads
    }
    // Leaving main before that thread is done would end the process with main's exit code.
    static const OwnerProcess owner;
    std::atexit([] {
      while (owner.is_this()) pause();
    });
  }

 private:
  double patience() const {
    const bool heard = failure_->origin_of_family() == Failure::Origin::elsewhere;
    return (heard ? deadlines::kOrigin : deadlines::kHear).count();
  }

  MpiCommunicator& mpi() { return static_cast<MpiCommunicator&>(*communicator_); }

  std::shared_ptr<Communicator>
      communicator_;  // null once MPI_Finalize begins; another thread may still fail then
  const int size_;
  std::shared_ptr<Failure> failure_;
  bool finalize_;
};

// Initialises MPI, which waits for all ranks.
void initialize(int* argc, char*** argv, const SessionOptions& options) {
  {
    const double timeout_seconds = options.timeout();
    const TimeLimit limit(launched_rank(), timeout_seconds,
        c10::str("session: MPI_Init_thread has not ended after ", timeout_seconds,
            " s. It ends once every process of the job is in it: look for one that did not start, is stopped "
            "or has not come to its Session, and whether the hosts reach each other; if ranks only start "
            "slowly, set a longer SessionOptions::timeout"),
        options.on_failure() == OnFailure::end);
    int provided = MPI_THREAD_SINGLE;
    ZEROSCHED_MPI_CALL(MPI_Init_thread, argc, argv, MPI_THREAD_MULTIPLE, &provided);
  }
  int size = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_size, MPI_COMM_WORLD, &size);
  const int launched = launched_processes();
  if (size >= launched) return;
  MPI_Finalize();  // every rank of this world is here
  ZEROSCHED_CHECK(false, "session: ", launched, " processes were started, but MPI has connected ", size,
      "; start the program with the mpirun of the MPI that zerosched was built with, or with \"srun "
      "--mpi=pmix\"");
}

// What keeps a rank from joining is known to that rank only, or not to the ranks that are missing: no error for
// handlers, of which the other ranks' would wait for this one.
std::shared_ptr<Communicator> join(const SessionOptions& options) {
  const double timeout_seconds = options.timeout();
  const bool ends_process = options.on_failure() == OnFailure::end;
  int rank = 0;
  ZEROSCHED_MPI_CALL(MPI_Comm_rank, MPI_COMM_WORLD, &rank);
  const double longest = 2 * timeout_seconds + deadlines::kJoin.count();
  const TimeLimit limit(rank, longest,
      c10::str("session: the communicator of the job is not there after ", longest,
          " s, although every rank has come to it: one was stopped or cut off meanwhile"),
      ends_process);
  try {
    MpiOptions mpi_options;
    mpi_options.timeout_seconds = timeout_seconds;
    mpi_options.flat_collectives = options.flat_collectives();
    auto communicator = make_mpi_communicator(MPI_COMM_WORLD, mpi_options);
    warn_if_crowded(MPI_COMM_WORLD);
    return communicator;
  } catch (const std::exception& error) {
    if (!ends_process) throw;
    report_end(rank, "session: the job cannot be joined: " + message_of(error));
    std::this_thread::sleep_for(deadlines::kHear);
    end_mpi_job(kFailureExitCode);
  }
}

}  // namespace

bool has_mpi_world() {
  int initialized = 0;
  int finalized = 0;
  int size = 1;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size > 1;
}

std::unique_ptr<Job> make_mpi_job(int* argc, char*** argv, const SessionOptions& options) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  int finalized = 0;
  MPI_Finalized(&finalized);
  ZEROSCHED_CHECK(!finalized,
      "session: MPI is finalised already, which it can be once in a process; for several sessions one after "
      "the other call MPI_Init_thread before the first and MPI_Finalize after the last");
  if (!initialized) initialize(argc, argv, options);
  return std::make_unique<MpiJob>(join(options), !initialized);
}

}  // namespace zerosched::detail
