#include "comm/mpi/phased_operation.h"

namespace zerosched::detail {

bool PhasedOperation::poll_data() {
  bool moved = false;
  while (!stages_.empty()) {
    moved = stages_.front()->poll() || moved;
    if (!stages_.front()->done()) return moved;
    stages_.pop_front();
  }
  end_data();
  set_data_done();
  return true;
}

}  // namespace zerosched::detail
