#include "session/job.h"

#include <c10/util/Exception.h>

namespace zerosched::detail {

std::unique_ptr<Job> make_mpi_job(int*, char***, const SessionOptions&) {
  TORCH_CHECK(false,
      "session: this zerosched was built without MPI; build it with -DZEROSCHED_MPI=ON, or start one process "
      "without mpirun or with the backend \"self\"");
}

bool has_mpi_world() { return false; }

}  // namespace zerosched::detail
