#include "comm/placement.h"

#include "comm/agree.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <map>

namespace zerosched::detail {

namespace {

// What a rank says of its device, as bytes.
struct Placement {
  int32_t device;
  char identity[60];
};
static_assert(sizeof(Placement) == 64);

}  // namespace

int device_of_local_rank(const Communicator& communicator, device::Runtime& runtime) {
  return communicator.local_rank() % runtime.device_count();
}

std::string shared_device(Communicator& communicator, device::Runtime& runtime, int device) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(Placement));
  Placement own{};
  own.device = device;
  agree_on(communicator, [&] {
    const std::string identity = device < 0 ? std::string() : runtime.identity(device);
    std::memcpy(own.identity, identity.data(), std::min(identity.size(), sizeof(own.identity)));
  });
  auto all = at::zeros({kBytes * communicator.size()}, at::kByte);
  auto* bytes = static_cast<char*>(all.mutable_data_ptr());
  std::memcpy(bytes + communicator.rank() * kBytes, &own, sizeof(own));
  communicator.all_gather(all, {"devices of the ranks"})->wait();
  std::map<std::string, int> owner;
  for (int rank = 0; rank < communicator.size(); ++rank) {
    Placement placement;
    std::memcpy(&placement, bytes + rank * kBytes, sizeof(placement));
    if (placement.device < 0) continue;
    const auto [first, is_new] =
        owner.emplace(std::string(placement.identity, sizeof(placement.identity)), rank);
    if (!is_new) {
      return "ranks " + std::to_string(first->second) + " and " + std::to_string(rank) +
             " share cuda:" + std::to_string(placement.device);
    }
  }
  return {};
}

}  // namespace zerosched::detail
