#pragma once

#include "kernels/ranges.h"

#include <cstdlib>
#include <cstring>
#include <memory>

namespace zerosched::kernels::testing {

/// A copy of an array that ends where its memory ends, at an offset, in bytes, from 16-byte alignment.
class Device {
 public:
  explicit Device(const Array& array, size_t offset = 0) : bytes_(array.byte_count()), offset_(offset) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes_ + offset_ + (bytes_ + offset_ == 0)) != 0) std::abort();
    memory_.reset(static_cast<char*>(memory));
    if (bytes_ > 0) std::memcpy(data(), array.data(), bytes_);
  }
  void* data() const { return memory_.get() + offset_; }
  bool same_bits(const Array& other) const {
    return bytes_ == 0 || std::memcmp(data(), other.data(), bytes_) == 0;
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  size_t bytes_, offset_;
  std::unique_ptr<char, Free> memory_;
};

}  // namespace zerosched::kernels::testing
