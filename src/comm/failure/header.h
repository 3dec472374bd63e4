#pragma once

#include <zerosched/communicator.h>

#include <cstdint>
#include <string>
#include <type_traits>

namespace zerosched::detail {

/// What a rank is in: sent with every collective to other ranks, which compare it with their own, as bytes.
/// So it is zeroed before it is filled.
struct Header {
  uint64_t group;      ///< which communicator
  int64_t sequence;    ///< number of the collective on its communicator, from 0
  int64_t byte_count;  ///< of the whole tensor
  int64_t bucket;
  int64_t step;
  uint64_t label_hash;  ///< of the whole label, of which `what` keeps the beginning
  int32_t root;         ///< broadcast only, else -1
  uint8_t kind;
  int8_t dtype;  ///< -1 for a barrier
  uint8_t reduction;
  uint8_t in_window;  ///< whether ranks of a host read the tensor from each other's memory
  char what[48];
};
static_assert(std::is_trivially_copyable_v<Header>);

/// `sequence` and `group` are set when the collective is queued.
Header make_header(Collective kind, const CollectiveLabel& label, const at::Tensor* tensor);

/// Whether two ranks are in the same collective.
bool matches(const Header& a, const Header& b);

/// "all_reduce #12 'loss' (step 5)".
std::string describe(const Header& header);

/// describe(), and size, dtype, reduction and root: for headers that differ only there.
std::string describe_in_full(const Header& header);

}  // namespace zerosched::detail
