#include "engine/gradient_edits.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace zerosched::detail {
namespace {

// Products are rounded to the gradient's type: bfloat16 has 8 bits.
constexpr double kRounding32 = 1e-5, kRounding16 = 1.0 / 64;
// With fewer samples that are not 0 an edit of another kind could look like one factor.
constexpr int kFewest = 3;

template <typename T>
double magnitude(const void* data, int64_t index) {
  return std::abs(static_cast<double>(static_cast<const T*>(data)[index]));
}

// By pointer: a view of each element would cost more than a small model's step.
double magnitude(c10::ScalarType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case at::kFloat:
      return magnitude<float>(data, index);
    case at::kDouble:
      return magnitude<double>(data, index);
    case at::kBFloat16:
      return magnitude<at::BFloat16>(data, index);
    case at::kHalf:
      return magnitude<at::Half>(data, index);
    default:
      return 0;
  }
}

}  // namespace

GradientEdits::GradientEdits(const std::vector<at::Tensor>& parameters)
    : parameters_(parameters), rounding_(kRounding32), seen_(parameters.size()) {
  for (const at::Tensor& parameter : parameters) {
    if (parameter.element_size() == 2) rounding_ = kRounding16;
  }
}

std::array<double, GradientEdits::kSamples> GradientEdits::sample(const at::Tensor& gradient) {
  std::array<double, kSamples> values = {};
  const int64_t numel = gradient.numel();
  if (numel == 0 || !gradient.is_non_overlapping_and_dense()) return values;
  const void* data = gradient.const_data_ptr();
  for (int i = 0; i < kSamples; ++i) {
    values[static_cast<size_t>(i)] =
        magnitude(gradient.scalar_type(), data, (numel - 1) * i / (kSamples - 1));
  }
  return values;
}

void GradientEdits::saw(int64_t parameter, const at::Tensor& gradient) {
  if (!gradient.defined() || gradient.is_sparse()) return;
  seen_[static_cast<size_t>(parameter)] = {true, sample(gradient)};
}

double GradientEdits::factor() const {
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  double smallest = std::numeric_limits<double>::infinity(), largest = 0;
  int samples = 0;
  for (size_t p = 0; p < seen_.size(); ++p) {
    const at::Tensor& gradient = parameters_[p].grad();
    if (!seen_[p].known || !gradient.defined() || gradient.is_sparse()) continue;
    const auto now = sample(gradient);
    for (size_t i = 0; i < now.size(); ++i) {
      if (!(seen_[p].values[i] > 0) || !std::isfinite(seen_[p].values[i])) continue;
      const double ratio = now[i] / seen_[p].values[i];
      smallest = std::min(smallest, ratio);
      largest = std::max(largest, ratio);
      ++samples;
    }
  }
  if (samples < kFewest || !(largest - smallest <= rounding_ * largest)) return kUnknown;
  return smallest <= 1 && 1 <= largest ? 1 : (smallest + largest) / 2;
}

void GradientEdits::clear() { std::fill(seen_.begin(), seen_.end(), Samples()); }

bool GradientEdits::look_like_clipping(double factor, double other) const {
  // NaN compares as false.
  return 0 < factor && factor <= 1 && 0 < other && other <= 1 &&
         std::abs(factor - other) > 2 * rounding_ * std::max(factor, other);
}

}  // namespace zerosched::detail
