#include "fakes/fake_kernels.h"

#include "kernels/clipping.h"
#include "kernels/kernels.h"
#include "kernels/powers.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

namespace zerosched::testing {

namespace cuda = kernels::cuda;

namespace {

void* at_element(void* base, int64_t index, c10::ScalarType dtype) {
  return static_cast<std::byte*>(base) + index * static_cast<int64_t>(c10::elementSize(dtype));
}

// Not 0 in the bits of any of the types of gradients.
bool is_used(const cuda::SpanOnDevice& span, c10::ScalarType dtype) {
  if (span.used == nullptr) return true;
  const auto* bytes = static_cast<const std::byte*>(span.used);
  return std::any_of(
      bytes, bytes + c10::elementSize(dtype), [](std::byte byte) { return byte != std::byte{0}; });
}

void pack_on_host(
    c10::ScalarType dtype, const cuda::PackBucket& bucket, const std::vector<cuda::PackSource>& sources) {
  const auto size = static_cast<int64_t>(c10::elementSize(dtype));
  const float one = 1;
  std::vector<std::byte> whole(static_cast<size_t>(bucket.world_size * bucket.shard_numel * size));
  for (const cuda::PackSource& source : sources) {
    if (source.gradient == nullptr) continue;
    kernels::copy_gradient(dtype, at_element(whole.data(), source.begin, dtype), source.dtype,
        source.gradient, source.numel, bucket.weight);
  }
  for (int64_t s = 0; s < bucket.world_size; ++s) {
    const int64_t slice_begin = s * bucket.shard_numel, slice_end = slice_begin + bucket.shard_numel;
    void* slice = at_element(bucket.buffer, s * bucket.slice_numel, dtype);
    std::memcpy(
        slice, at_element(whole.data(), slice_begin, dtype), static_cast<size_t>(bucket.shard_numel * size));
    void* flags = at_element(slice, bucket.shard_numel, dtype);
    std::memset(flags, 0, static_cast<size_t>(bucket.flag_numel * size));
    int64_t flag = 0;
    for (const cuda::PackSource& source : sources) {
      if (source.begin >= slice_end || source.begin + source.numel <= slice_begin) continue;
      void* to = at_element(flags, flag++, dtype);
      if (source.gradient == nullptr) continue;
      if (dtype == c10::ScalarType::Double) {
        *static_cast<double*>(to) = 1;
      } else if (dtype == c10::ScalarType::Float) {
        *static_cast<float*>(to) = 1;
      } else {
        kernels::copy_gradient(dtype, to, c10::ScalarType::Float, &one, 1, 1);
      }
    }
    const int64_t report_numel = bucket.slice_numel - bucket.shard_numel - bucket.flag_numel;
    if (report_numel > 0) {
      std::memcpy(at_element(flags, bucket.flag_numel, dtype), bucket.report,
          static_cast<size_t>(report_numel * size));
    }
  }
}

}  // namespace

void FakeKernels::enqueue(const char* name, cuda::Stream stream, std::function<void()> work) {
  ++calls[name];
  runtime_.enqueue({0, stream}, [work = std::move(work)] {
    work();
    return true;
  });
}

void FakeKernels::update(kernels::Rule rule, const kernels::StepScalars&, c10::ScalarType param_dtype,
    c10::ScalarType grad_dtype, const cuda::ShardUpdate& shard, cuda::Stream stream) {
  enqueue("update", stream, [rule, param_dtype, grad_dtype, shard] {
    kernels::StepScalars scalars = *shard.scalars;
    if (shard.norm != nullptr) {
      if (shard.norm->found_inf != 0) return;
      scalars.grad_scale *= shard.norm->clip_factor;
    }
    for (const auto* span = shard.spans; span != shard.spans + shard.span_count; ++span) {
      if (!is_used(*span, grad_dtype)) continue;
      kernels::UpdateRange range{param_dtype, grad_dtype, span->y, span->values, {}, span->numel};
      for (size_t i = 0; i < kernels::kMaxStateTensors; ++i) {
        if (shard.state[i] != nullptr) {
          range.state[i] = at_element(shard.state[i], span->begin, kernels::state_dtype(param_dtype));
        }
      }
      const bool finite = kernels::update(rule, range, scalars);
      if (!finite && shard.not_finite != nullptr) *shard.not_finite = 1;
    }
  });
}

void FakeKernels::interpolate(c10::ScalarType param_dtype, void* out, const void* x, const void* z,
    double weight, int64_t numel, cuda::Stream stream) {
  enqueue("interpolate", stream, [=] { kernels::interpolate(param_dtype, out, x, z, weight, numel); });
}

int64_t FakeKernels::sum_of_squares_workspace_numel(int64_t, int64_t span_count) { return span_count + 1; }

void FakeKernels::sum_of_squares(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t, double*, double* sum, cuda::Stream stream) {
  enqueue("sum_of_squares", stream, [=] {
    for (const auto* span = spans; span != spans + span_count; ++span) {
      if (is_used(*span, grad_dtype)) *sum += kernels::sum_of_squares(grad_dtype, span->values, span->numel);
    }
  });
}

void FakeKernels::sum_of_powers(c10::ScalarType grad_dtype, double p, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t, double*, double* sum, cuda::Stream stream) {
  enqueue("sum_of_powers", stream, [=] {
    for (const auto* span = spans; span != spans + span_count; ++span) {
      if (is_used(*span, grad_dtype))
        *sum += kernels::sum_of_powers(grad_dtype, span->values, span->numel, p);
    }
  });
}

void FakeKernels::inner_product(c10::ScalarType grad_dtype, double weight, const void* z, const void* x,
    const cuda::SpanOnDevice* spans, int64_t span_count, int64_t, double*, double* sum, cuda::Stream stream) {
  enqueue("inner_product", stream, [=] {
    const c10::ScalarType state = kernels::state_dtype(grad_dtype);
    for (const auto* span = spans; span != spans + span_count; ++span) {
      if (!is_used(*span, grad_dtype)) continue;
      *sum += kernels::inner_product(grad_dtype, span->values,
          at_element(const_cast<void*>(z), span->begin, state),
          at_element(const_cast<void*>(x), span->begin, state), span->numel, weight);
    }
  });
}

void FakeKernels::squares_by_parameter(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t, double*, double* squares, cuda::Stream stream) {
  enqueue("squares_by_parameter", stream, [=] {
    for (const auto* span = spans; span != spans + span_count; ++span) {
      if (is_used(*span, grad_dtype))
        squares[span->parameter] += kernels::sum_of_squares(grad_dtype, span->values, span->numel);
    }
  });
}

void FakeKernels::max_abs(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans, int64_t span_count,
    int64_t, double*, double* largest, cuda::Stream stream) {
  enqueue("max_abs", stream, [=] {
    for (const auto* span = spans; span != spans + span_count; ++span) {
      if (!is_used(*span, grad_dtype)) continue;
      *largest = kernels::Largest::add(*largest, kernels::max_abs(grad_dtype, span->values, span->numel));
    }
  });
}

void FakeKernels::clamp_gradient(c10::ScalarType grad_dtype, const cuda::SpanOnDevice* spans,
    int64_t span_count, int64_t, double limit, cuda::Stream stream) {
  enqueue("clamp_gradient", stream, [=] {
    for (const auto* span = spans; span != spans + span_count; ++span) {
      if (is_used(*span, grad_dtype))
        kernels::clamp_gradient(grad_dtype, const_cast<void*>(span->values), span->numel, limit);
    }
  });
}

void FakeKernels::pack(c10::ScalarType dtype, const cuda::PackBucket& bucket, const cuda::PackSource* sources,
    int64_t source_count, cuda::Stream stream) {
  enqueue(
      "pack", stream, [dtype, bucket, all = std::vector<cuda::PackSource>(sources, sources + source_count)] {
        pack_on_host(dtype, bucket, all);
      });
}

void FakeKernels::gradient_norm(const double* sum, const kernels::StepScalars* scalars,
    std::optional<double> max_norm, bool skip_non_finite, c10::ScalarType state_dtype,
    cuda::GradientNorm* out, cuda::Stream stream) {
  enqueue("gradient_norm", stream, [=] {
    out->norm = std::sqrt(*sum) * scalars->grad_scale;
    out->clip_factor = max_norm ? kernels::clip_factor(out->norm, *max_norm) : 1;
    const bool usable =
        kernels::can_be_used(out->norm, scalars->grad_scale, state_dtype == c10::ScalarType::Double);
    out->found_inf = skip_non_finite && !usable ? 1 : 0;
  });
}

}  // namespace zerosched::testing
