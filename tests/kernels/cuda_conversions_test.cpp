// A GPU converts between float32 and 16 bits with instructions of its own. What those do is spelled out for
// hosts in the toolkit's cuda_bf16.h and cuda_fp16.h: the CPU's conversions must give the same bits.
#include "kernels/element_types.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <gtest/gtest.h>

#include <cmath>

namespace zerosched::kernels {
namespace {

uint16_t bits_of(__nv_bfloat16 value) { return static_cast<__nv_bfloat16_raw>(value).x; }
uint16_t bits_of(__half value) { return static_cast<__half_raw>(value).x; }

template <typename Element>
uint16_t stored(float value) {
  Element element;
  store(element, value);
  return element.bits;
}

// A prime apart, so that all exponents, signs and many roundings take part, and around every tie.
TEST(CudaConversions, StoreLikeTheToolkit) {
  const auto check = [](uint32_t bits) {
    const float value = float_of_bits(bits);
    ASSERT_EQ(stored<BFloat16>(value), bits_of(__float2bfloat16_rn(value))) << std::hexfloat << value;
    ASSERT_EQ(stored<Float16>(value), bits_of(__float2half_rn(value))) << std::hexfloat << value;
  };
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 509) check(static_cast<uint32_t>(bits));
  for (uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const uint32_t lower : {0x0000U, 0x0001U, 0x0fffU, 0x1000U, 0x1001U, 0x2fffU, 0x3000U, 0x3001U,
             0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      check(upper << 16 | lower);
    }
  }
}

TEST(CudaConversions, LoadLikeTheToolkit) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    __half_raw raw;
    raw.x = static_cast<uint16_t>(bits);
    const float expected = __half2float(__half(raw));
    const float loaded = load(Float16{static_cast<uint16_t>(bits)});
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(loaded)) << std::hex << bits;
    } else {
      ASSERT_EQ(bits_of_float(loaded), bits_of_float(expected)) << std::hex << bits;
    }
  }
}

}  // namespace
}  // namespace zerosched::kernels
