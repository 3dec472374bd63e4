#include "engine/buffer_sync.h"

#include "engine/equal_on_ranks.h"
#include "engine/names_text.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdint>
#include <string>

namespace zerosched::detail {

// The indices of buffers that are not the same on all ranks. As in agreeing on one value, max(hash) and
// max(~hash) = ~min(hash) tell both ends.
std::vector<size_t> BufferSync::differing() const {
  const size_t count = model_.buffers.size();
  const at::Tensor ends = at::empty({2 * static_cast<int64_t>(count)}, at::kLong);
  auto* hashes = ends.mutable_data_ptr<int64_t>();
  for (size_t b = 0; b < count; ++b) {
    const at::Tensor host = executor_.to_host(model_.buffers[b].detach()).contiguous();
    hashes[b] =
        host.numel() == 0 ? 0 : static_cast<int64_t>(XXH3_64bits(host.const_data_ptr(), host.nbytes()));
    hashes[count + b] = ~hashes[b];
  }
  communicator_.all_reduce(ends, ReduceOp::max, {"hashes of buffers"})->wait();
  std::vector<size_t> differing;
  for (size_t b = 0; b < count; ++b) {
    if (hashes[b] != ~hashes[count + b]) differing.push_back(b);
  }
  return differing;
}

void BufferSync::run() {
  if (communicator_.size() == 1 || model_.buffers.empty()) return;
  if (!broadcast_ && warned_) return;  // nothing to do, and nothing more to say
  std::vector<at::Tensor> tensors;
  std::vector<std::string> names;
  for (const size_t b : differing()) {
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
