#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace zerosched::detail {

/// XXH3 (64 bits) of bytes that come in pieces, as the 16 hexadecimal digits of its canonical form.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void add(const void* bytes, size_t byte_count);
  std::string text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zerosched::detail
