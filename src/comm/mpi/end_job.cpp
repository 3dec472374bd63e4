#include "comm/mpi/end_job.h"

#include "comm/failure/deadlines.h"
#include "comm/failure/report_end.h"
#include "comm/failure/terminate.h"
#include "comm/mpi/mpi_backend.h"

#include <zerosched/exit_codes.h>

#include <mpi.h>

#include <cstdio>
#include <string>

#include <unistd.h>

namespace zerosched::detail {

void end_mpi_job(int exit_code) noexcept {
  std::fflush(stdout);
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

void end_mpi_job_on_terminate() {
  set_communicator_end([](const std::string& what) {
    int rank = 0;
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    report_end(rank, what);
    abort_mpi_communicators({"rank " + std::to_string(rank) + ": " + what, rank}, deadlines::kHear.count());
    end_mpi_job(kFailureExitCode);
  });
}

}  // namespace zerosched::detail
