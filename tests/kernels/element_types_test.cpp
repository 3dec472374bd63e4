// float32 to 16 bits and back, against LibTorch's conversions.
#include "kernels/element_types.h"
#include "kernels/cpu/variant.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace zerosched::kernels {
namespace {

using c10::ScalarType;

constexpr uint16_t kNaN = 0x7fff;

// Every upper half of a float32 with the lower halves where rounding turns, and random ones.
std::vector<float> rounding_cases() {
  std::vector<uint32_t> patterns;
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const uint32_t lower : {0x0000U, 0x0001U, 0x0fffU, 0x1000U, 0x1001U, 0x2fffU, 0x3000U, 0x3001U,
             0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      patterns.push_back(upper << 16 | lower);
    }
  }
  std::mt19937 generator(5);
  for (int i = 0; i < 200'000; ++i) patterns.push_back(static_cast<uint32_t>(generator()));
  std::vector<float> values(patterns.size());
  std::memcpy(values.data(), patterns.data(), patterns.size() * sizeof(float));
  return values;
}

template <typename Element, typename Expected>
void expect_stores_like() {
  for (const float value : rounding_cases()) {
    Element stored;
    store(stored, value);
    const uint16_t expected = std::isnan(value) ? kNaN : Expected(value).x;
    ASSERT_EQ(stored.bits, expected) << std::hexfloat << value;
  }
}

template <typename Element, typename Expected>
void expect_loads_like() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float loaded = load(Element{static_cast<uint16_t>(bits)});
    const float expected = static_cast<float>(Expected(static_cast<uint16_t>(bits), Expected::from_bits()));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(loaded)) << std::hex << bits;
    } else {
      ASSERT_EQ(bits_of_float(loaded), bits_of_float(expected)) << std::hex << bits;
    }
  }
}

TEST(ElementTypes, BFloat16IsLibTorchs) {
  expect_stores_like<BFloat16, c10::BFloat16>();
  expect_loads_like<BFloat16, c10::BFloat16>();
}

TEST(ElementTypes, Float16IsLibTorchs) {
  expect_stores_like<Float16, c10::Half>();
  expect_loads_like<Float16, c10::Half>();
}

// Vectorised, in every instruction set. x + 0 (x - x) is NaN for infinite x.
template <typename Element>
void expect_variants_store(ScalarType dtype) {
  const std::vector<float> values = rounding_cases();
  const auto numel = static_cast<int64_t>(values.size());
  for (const Variant* variant : runnable_variants()) {
    std::vector<Element> out(values.size());
    variant->interpolate(dtype, out.data(), values.data(), values.data(), 0.0, numel);
    for (size_t i = 0; i < values.size(); ++i) {
      Element expected;
      store(expected, std::isinf(values[i]) ? std::nanf("") : values[i]);
      ASSERT_EQ(out[i].bits, expected.bits) << variant->name << " " << std::hexfloat << values[i];
    }
  }
}

TEST(ElementTypes, EveryInstructionSetStoresTheSame) {
  expect_variants_store<BFloat16>(ScalarType::BFloat16);
  expect_variants_store<Float16>(ScalarType::Half);
}

}  // namespace
}  // namespace zerosched::kernels
