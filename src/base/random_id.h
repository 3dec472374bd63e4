#pragma once

#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>

namespace zerosched::detail {

/// What nothing else has, in any process on any machine.
inline uint64_t random_id() {
  std::random_device random;
  return (static_cast<uint64_t>(random()) << 32) | random();
}

inline constexpr size_t kRandomNameDigits = 16;

/// The same as text, for names of files and in them: hexadecimal digits, lower case.
inline std::string random_name() {
  char text[kRandomNameDigits + 1];
  std::snprintf(text, sizeof(text), "%016" PRIx64, random_id());
  return text;
}

}  // namespace zerosched::detail
