#include "engine/buffer_sync.h"

#include "engine/equal_on_ranks.h"
#include "engine/names_text.h"

#include <c10/util/Exception.h>

#include <cstdint>
#include <string>

namespace zerosched::detail {

void BufferSync::run() {
  if (communicator_.size() == 1 || model_.buffers.empty()) return;
  if (!broadcast_ && warned_) return;  // nothing to do, and nothing more to say
  std::vector<at::Tensor> tensors;
  std::vector<std::string> names;
  std::vector<int64_t> hashes;
  for (const at::Tensor& buffer : model_.buffers)
    hashes.push_back(hash_of(executor_.to_host(buffer.detach())));
  for (const size_t b : differing(communicator_, hashes, "hashes of buffers")) {
    tensors.push_back(model_.buffers[b]);
    names.push_back(model_.buffer_names[b]);
  }
  if (tensors.empty()) return;
  if (broadcast_) {
    broadcast_values(communicator_, tensors);
    return;
  }
  if (communicator_.rank() == 0) {
    TORCH_WARN("zerosched: buffers of the module differ between ranks: ", names_text(names),
        ". broadcast_buffers(false) leaves them so: eval() evaluates each rank's own, and checkpoints and "
        "exports "
        "hold rank 0's.");
  }
  warned_ = true;
}

}  // namespace zerosched::detail
