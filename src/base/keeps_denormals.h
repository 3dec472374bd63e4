#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace zerosched::detail {

/// While it lives the calling thread computes with denormal numbers. at::set_flush_denormal(true) holds for the thread that
/// calls it alone, and a sum must not depend on which thread came to make it.
class KeepsDenormals {
 public:
#if defined(__SSE__)
  KeepsDenormals() noexcept : before_(_mm_getcsr()) {
    if ((before_ & kFlush) != 0) _mm_setcsr(before_ & ~kFlush);
  }
  ~KeepsDenormals() {
    if ((before_ & kFlush) != 0) _mm_setcsr(before_);
  }
#elif defined(__aarch64__)
  KeepsDenormals() noexcept {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    if ((before_ & kFlush) != 0) asm volatile("msr fpcr, %0" : : "r"(before_ & ~kFlush));
  }
  ~KeepsDenormals() {
    if ((before_ & kFlush) != 0) asm volatile("msr fpcr, %0" : : "r"(before_));
  }
#else
  KeepsDenormals() noexcept = default;
#endif
  KeepsDenormals(const KeepsDenormals&) = delete;
  KeepsDenormals& operator=(const KeepsDenormals&) = delete;

 private:
#if defined(__SSE__)
  static constexpr unsigned kFlush = 0x8040;  // of MXCSR: flush-to-zero, denormals-are-zero
  unsigned before_;
#elif defined(__aarch64__)
  static constexpr unsigned long kFlush = 1UL << 24;  // of FPCR
  unsigned long before_;
#endif
};

}  // namespace zerosched::detail
