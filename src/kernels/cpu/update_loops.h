// A part of variant_definition.h, which says what its loops may use.
#pragma once

#include "kernels/cpu/streaming.h"
#include "kernels/element_types.h"
#include "kernels/rules/select.h"
#include "kernels/update.h"

#include <cstdint>

// NOLINTBEGIN(misc-definitions-in-headers): internal to each variant on purpose
namespace zerosched::kernels {
namespace {

// What is computed, and out of cache prefetched and streamed, at a time: 128 bytes of every state tensor, of which
// compilers unroll the loop whole.
template <typename Real>
constexpr int64_t kChunkNumel = 128 / static_cast<int64_t>(sizeof(Real));

/// finite: as of zero_if_finite, one for each of at most a chunk's elements; compilers keep the order of a single
/// sum, and would not vectorise it.
template <typename UpdateRule, typename Param, typename Grad, typename Real, typename Coefficients>
ZEROSCHED_ELEMENT void update_elements(Param* __restrict y, const Grad* __restrict g, Real* __restrict a,
    Real* __restrict b, Real* __restrict c, Real* __restrict d, Real* __restrict finite, int64_t numel,
    const Coefficients& s) {
  constexpr bool kHasThird = UpdateRule::kStateTensors > 2;
  constexpr bool kHasFourth = UpdateRule::kStateTensors > 3;
  for (int64_t i = 0; i < numel; ++i) {
    Real a_i = a[i];
    Real b_i = b[i];
    Real c_i = kHasThird ? c[i] : Real(0);
    Real d_i = kHasFourth ? d[i] : Real(0);
    const Real y_i = UpdateRule::apply(static_cast<Real>(load(g[i])), a_i, b_i, c_i, d_i, s);
    a[i] = a_i;
    b[i] = b_i;
    if (kHasThird) c[i] = c_i;
    if (kHasFourth) d[i] = d_i;
    store(y[i], y_i);
    finite[i] = zero_if_finite(zero_if_finite(finite[i], a_i), kHasFourth ? d_i : kHasThird ? c_i : b_i);
  }
}

template <bool kOutOfCache, typename UpdateRule, typename Param, typename Grad, typename Real,
    typename Coefficients>
bool update_chunks(const Coefficients& s, const UpdateRange& r) {
  constexpr bool kHasThird = UpdateRule::kStateTensors > 2;
  constexpr bool kHasFourth = UpdateRule::kStateTensors > 3;
  constexpr int64_t kNumel = kChunkNumel<Real>;
  auto* y = static_cast<Param*>(r.y);
  const auto* g = static_cast<const Grad*>(r.g);
  auto* a = static_cast<Real*>(r.state[0]);
  auto* b = static_cast<Real*>(r.state[1]);
  auto* c = static_cast<Real*>(r.state[2]);
  auto* d = static_cast<Real*>(r.state[3]);
  alignas(64) Real finite[kNumel] = {};
  int64_t i = 0;
  for (; i + kNumel <= r.numel; i += kNumel) {
    Real* const c_chunk = kHasThird ? c + i : c;
    Real* const d_chunk = kHasFourth ? d + i : d;
    if constexpr (kOutOfCache) {
      prefetch_chunk<kNumel>(g + i);
      prefetch_chunk<kNumel>(a + i);
      prefetch_chunk<kNumel>(b + i);
      if (kHasThird) prefetch_chunk<kNumel>(c_chunk);
      if (kHasFourth) prefetch_chunk<kNumel>(d_chunk);
      alignas(64) Param chunk[kNumel];
      update_elements<UpdateRule>(chunk, g + i, a + i, b + i, c_chunk, d_chunk, finite, kNumel, s);
      stream_chunk<kNumel>(y + i, chunk);
    } else {
      update_elements<UpdateRule>(y + i, g + i, a + i, b + i, c_chunk, d_chunk, finite, kNumel, s);
    }
  }
  update_elements<UpdateRule>(
      y + i, g + i, a + i, b + i, kHasThird ? c + i : c, kHasFourth ? d + i : d, finite, r.numel - i, s);
  if (kOutOfCache) finish_streaming();
  Real all_finite = 0;
  for (int64_t j = 0; j < kNumel; ++j) all_finite += finite[j];
  return all_finite == 0;
}

template <typename UpdateRule, typename Param, typename Grad, typename Real, typename Coefficients>
bool update_with(const Coefficients& s, const UpdateRange& range, bool out_of_cache) {
  return out_of_cache ? update_chunks<true, UpdateRule, Param, Grad, Real>(s, range)
                      : update_chunks<false, UpdateRule, Param, Grad, Real>(s, range);
}

template <typename UpdateRule, typename Param, typename Grad, typename Real>
bool update_range(const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  if constexpr (UpdateRule::kInterpolates) {
    using Near = LerpNearA<Real>;
    if (Near::covers(scalars.y_weight_before) && Near::covers(scalars.c) && Near::covers(scalars.y_weight)) {
      const typename UpdateRule::template Coefficients<Real, LerpNearA> s(scalars);
      return update_with<UpdateRule, Param, Grad, Real>(s, range, out_of_cache);
    }
  }
  const typename UpdateRule::template Coefficients<Real> s(scalars);
  return update_with<UpdateRule, Param, Grad, Real>(s, range, out_of_cache);
}

template <typename UpdateRule>
bool update_by(const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  const bool own_dtype = range.grad_dtype == range.param_dtype;
  switch (range.param_dtype) {
    case c10::ScalarType::Double:
      return update_range<UpdateRule, double, double, double>(range, scalars, out_of_cache);
    case c10::ScalarType::BFloat16:
      if (own_dtype) return update_range<UpdateRule, BFloat16, BFloat16, float>(range, scalars, out_of_cache);
      return update_range<UpdateRule, BFloat16, float, float>(range, scalars, out_of_cache);
    case c10::ScalarType::Half:
      if (own_dtype) return update_range<UpdateRule, Float16, Float16, float>(range, scalars, out_of_cache);
      return update_range<UpdateRule, Float16, float, float>(range, scalars, out_of_cache);
    default:
      if (own_dtype) return update_range<UpdateRule, float, float, float>(range, scalars, out_of_cache);
      return update_range<UpdateRule, float, BFloat16, float>(range, scalars, out_of_cache);
  }
}

bool update_by_rule(Rule rule, const UpdateRange& range, const StepScalars& scalars, bool out_of_cache) {
  bool finite = true;
  with_rule(rule, scalars,
      [&](auto chosen) { finite = update_by<decltype(chosen)>(range, scalars, out_of_cache); });
  return finite;
}

}  // namespace
}  // namespace zerosched::kernels
// NOLINTEND(misc-definitions-in-headers)
