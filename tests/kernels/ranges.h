#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

// Arrays for kernels to work on: typed by c10::ScalarType, as the kernels see them.
namespace zerosched::kernels::testing {

struct Dtypes {
  c10::ScalarType param;
  c10::ScalarType grad;
};

inline const std::vector<Dtypes>& all_dtypes() {
  using c10::ScalarType;
  static const std::vector<Dtypes> values = {{ScalarType::Float, ScalarType::Float},
      {ScalarType::Double, ScalarType::Double}, {ScalarType::BFloat16, ScalarType::BFloat16},
      {ScalarType::BFloat16, ScalarType::Float}, {ScalarType::Half, ScalarType::Half},
      {ScalarType::Half, ScalarType::Float}, {ScalarType::Float, ScalarType::BFloat16}};
  return values;
}

/// Of elements.
inline constexpr c10::ScalarType kDtypes[] = {
    c10::ScalarType::Float, c10::ScalarType::Double, c10::ScalarType::BFloat16, c10::ScalarType::Half};

/// Around every width of a vector, of a chunk of the kernel and of a block handed to a thread.
inline const std::vector<int64_t>& sizes() {
  static const std::vector<int64_t> values = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65,
      127, 128, 129, 191, 257, 511, 1000, 4095, 4097};
  return values;
}

/// Elements of one dtype at an offset, in elements, from 64-byte alignment; a canary before and after.
class Array {
 public:
  Array(c10::ScalarType dtype, int64_t numel, int64_t offset = 0)
      : dtype_(dtype), numel_(numel), memory_(static_cast<size_t>(numel) * size() + 2 * kMargin, kCanary) {
    const auto start = reinterpret_cast<uintptr_t>(memory_.data()) + 64;
    begin_ = 64 + (64 - start % 64) % 64 + static_cast<size_t>(offset) * size();
  }
  Array(const Array& other) : Array(other.dtype_, other.numel_) { *this = other; }
  /// Contents only: the place in memory stays.
  Array& operator=(const Array& other) {
    if (numel_ > 0) std::memcpy(data(), other.data(), byte_count());
    return *this;
  }

  c10::ScalarType dtype() const { return dtype_; }
  int64_t numel() const { return numel_; }
  void* data() { return memory_.data() + begin_; }
  const void* data() const { return memory_.data() + begin_; }
  size_t byte_count() const { return static_cast<size_t>(numel_) * size(); }

  double operator[](int64_t i) const {
    const char* at = memory_.data() + begin_ + static_cast<size_t>(i) * size();
    if (dtype_ == c10::ScalarType::Double) return read<double>(at);
    if (dtype_ == c10::ScalarType::Float) return read<float>(at);
    if (dtype_ == c10::ScalarType::Half) return static_cast<float>(read<c10::Half>(at));
    return static_cast<float>(read<c10::BFloat16>(at));
  }
  void set(int64_t i, double value) {
    char* at = memory_.data() + begin_ + static_cast<size_t>(i) * size();
    if (dtype_ == c10::ScalarType::Double) {
      std::memcpy(at, &value, sizeof(value));
    } else if (dtype_ == c10::ScalarType::Float) {
      const auto rounded = static_cast<float>(value);
      std::memcpy(at, &rounded, sizeof(rounded));
    } else if (dtype_ == c10::ScalarType::Half) {
      const c10::Half rounded(static_cast<float>(value));
      std::memcpy(at, &rounded, sizeof(rounded));
    } else {
      const c10::BFloat16 rounded(static_cast<float>(value));
      std::memcpy(at, &rounded, sizeof(rounded));
    }
  }

  /// Bit for bit, so that NaN equals itself and zeros differ by sign.
  bool same_bits(const Array& other) const {
    return numel_ == other.numel_ && (numel_ == 0 || std::memcmp(data(), other.data(), byte_count()) == 0);
  }
  bool canaries_intact() const {
    for (size_t i = 0; i < memory_.size(); ++i) {
      const bool inside = i >= begin_ && i < begin_ + byte_count();
      if (!inside && memory_[i] != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kMargin = 1024;
  static constexpr char kCanary = 0x5a;

  size_t size() const { return c10::elementSize(dtype_); }
  template <typename T>
  static T read(const char* at) {
    T value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }

  c10::ScalarType dtype_;
  int64_t numel_;
  std::vector<char> memory_;
  size_t begin_;
};

inline void fill_normal(Array& array, std::mt19937& generator, double scale) {
  std::normal_distribution<double> normal(0.0, scale);
  for (int64_t i = 0; i < array.numel(); ++i) array.set(i, normal(generator));
}

/// The same numbers in every call.
inline Array normal(c10::ScalarType dtype, int64_t numel) {
  std::mt19937 generator(7);
  Array array(dtype, numel);
  fill_normal(array, generator, 1.0);
  return array;
}

}  // namespace zerosched::kernels::testing
