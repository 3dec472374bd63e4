#include "base/check.h"
#include "session/job.h"

namespace zerosched::detail {

std::unique_ptr<Job> make_mpi_job(int*, char***, const SessionOptions&) {
  ZEROSCHED_CHECK(false,
      "session: this zerosched was built without MPI; build it with -DZEROSCHED_MPI=ON, or start one process "
      "without mpirun or with the backend \"self\"");
}

bool has_mpi_world() { return false; }

}  // namespace zerosched::detail
