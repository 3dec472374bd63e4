#include <zerosched/nccl_communicator.h>

#include "base/check.h"

namespace zerosched {

std::shared_ptr<Communicator> nccl_communicator(
    const std::shared_ptr<Communicator>&, std::optional<at::Device>, const NcclCommunicatorOptions&) {
  ZEROSCHED_CHECK(false,
      "nccl: this zerosched was built without the NCCL communicator; build it with -DZEROSCHED_CUDA=ON and "
      "NCCL's "
      "header (nccl.h), or use the backend \"mpi\"");
}

std::shared_ptr<Communicator> nccl_communicator(const std::shared_ptr<Communicator>& bootstrap,
    std::optional<at::Device> device, double timeout_seconds) {
  return nccl_communicator(bootstrap, device, NcclCommunicatorOptions().timeout(timeout_seconds));
}

}  // namespace zerosched
