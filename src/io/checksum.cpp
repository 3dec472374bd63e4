#include "io/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace zerosched::detail {

struct Checksum::State {
  XXH3_state_t hash;
};

Checksum::Checksum() : state_(new State) { XXH3_64bits_reset(&state_->hash); }
Checksum::~Checksum() = default;

void Checksum::add(const void* bytes, size_t byte_count) {
  XXH3_64bits_update(&state_->hash, bytes, byte_count);
}

std::string Checksum::text() const {
  constexpr const char* kDigits = "0123456789abcdef";
  XXH64_canonical_t canonical;
  XXH64_canonicalFromHash(&canonical, XXH3_64bits_digest(&state_->hash));
  std::string text;
  for (const unsigned char byte : canonical.digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace zerosched::detail
