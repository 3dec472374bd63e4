#include "comm/mpi/share_memory.h"

#include <c10/util/Exception.h>

#include <limits>
#include <system_error>

namespace zerosched::detail {

std::shared_ptr<SharedMapping> share_memory(
    const Hosts& hosts, int rank, int64_t byte_count, const SharingTalk& talk) {
  const auto& members = hosts.members(hosts.host_of(rank));
  std::shared_ptr<SharedMapping> mapping;
  std::string why_not;
  const auto attempt = [&](const auto& make) {
    try {
      mapping = make();
    } catch (const std::system_error& error) {
      why_not = error.what();
    }
  };
  if (rank == members.front()) attempt([&] { return SharedMapping::create(byte_count); });
  const SharedFile file =
      talk.gather(mapping == nullptr ? SharedFile{} : mapping->file())[static_cast<size_t>(members.front())];
  if (rank != members.front() && file.fd >= 0) attempt([&] { return SharedMapping::open(file, byte_count); });
  const int everyone = std::numeric_limits<int>::max();
  const int failed = talk.lowest(why_not.empty() ? everyone : rank);
  // The others have opened it, or never will.
  if (mapping != nullptr) mapping->close_file();
  if (failed == everyone) return mapping;
  if (failed == rank) {
    TORCH_WARN_ONCE("zerosched: rank ", rank, " cannot share memory with the other ranks of its host (",
        why_not,
        "), so what they exchange is copied by MPI, which takes longer. Processes of one user and one PID "
        "namespace can: "
        "start all ranks of a host in one container.");
  }
  return nullptr;
}

}  // namespace zerosched::detail
