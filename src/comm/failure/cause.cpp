#include "comm/failure/cause.h"

#include <cstdint>
#include <cstring>

namespace zerosched::detail {

namespace {

// Before the missing ranks, the name of the collective and the text, in this order.
struct WireCause {
  int32_t rank;
  uint32_t missing_count;
  uint32_t collective_bytes;
};

}  // namespace

std::string to_bytes(const Cause& cause) {
  const WireCause wire{cause.rank, static_cast<uint32_t>(cause.missing_ranks.size()),
      static_cast<uint32_t>(cause.collective.size())};
  std::string bytes(sizeof(wire), '\0');
  std::memcpy(bytes.data(), &wire, sizeof(wire));
  for (const int missing : cause.missing_ranks) {
    const auto number = static_cast<int32_t>(missing);
    bytes.append(reinterpret_cast<const char*>(&number), sizeof(number));
  }
  return bytes + cause.collective + cause.text;
}

Cause parse_cause(std::string_view bytes) {
  Cause cause;
  WireCause wire;
  if (bytes.size() >= sizeof(wire)) {
    std::memcpy(&wire, bytes.data(), sizeof(wire));
    auto rest = bytes.substr(sizeof(wire));
    const size_t missing_bytes = size_t{wire.missing_count} * sizeof(int32_t);
    if (missing_bytes + wire.collective_bytes <= rest.size()) {
      cause.rank = wire.rank;
      for (size_t at = 0; at < missing_bytes; at += sizeof(int32_t)) {
        int32_t number = 0;
        std::memcpy(&number, rest.data() + at, sizeof(number));
        cause.missing_ranks.push_back(number);
      }
      rest.remove_prefix(missing_bytes);
      cause.collective = rest.substr(0, wire.collective_bytes);
      cause.text = rest.substr(wire.collective_bytes);
      return cause;
    }
  }
  cause.text = bytes;
  return cause;
}

}  // namespace zerosched::detail
