#include "support/world.h"

#ifdef ZEROSCHED_TEST_MPI
#include <zerosched/mpi_communicator.h>
#endif

namespace zerosched::testing {

namespace {
std::shared_ptr<Communicator>* current = nullptr;
}

std::shared_ptr<Communicator> world() {
  if (current == nullptr) current = new std::shared_ptr<Communicator>;
  if (*current == nullptr) {
#ifdef ZEROSCHED_TEST_MPI
    *current = mpi_communicator(MPI_COMM_WORLD, 20);
#else
    *current = self_communicator();
#endif
  }
  return *current;
}

void forget_world() {
  delete current;
  current = nullptr;
}

}  // namespace zerosched::testing
