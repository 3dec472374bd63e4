// Runs the kernels through the shim and compares every bit with a loop over the same rules. Needs neither
// LibTorch nor GoogleTest, so that TSan sees all of it and mutated copies of the kernels build quickly.
//
// usage: program            every kernel, threads in their order and in three others; exit code 1 if a bit
// differs
#include "kernels/cuda/launch.h"
#include "kernels/element_types.h"
#include "kernels/rules/select.h"
#include "kernels/summation.h"

#include "beyond_int.h"
#include "cuda_runtime.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace zerosched::kernels;
using cuda::GradientNorm;
using cuda::SpanOnDevice;

/// Exactly as long as it says, on 16 bytes, so that ASan sees the first byte past its end.
template <typename T>
class Memory {
 public:
  explicit Memory(int64_t count) : count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, size()) != 0) std::abort();
    std::memset(memory, 0, size());
    data_ = static_cast<T*>(memory);
  }
  Memory(const Memory& other) : Memory(other.count_) { std::memcpy(data_, other.data_, size()); }
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  bool same_bits(const Memory& other) const { return std::memcmp(data_, other.data_, size()) == 0; }

 private:
  size_t size() const { return static_cast<size_t>(count_) * sizeof(T); }

  int64_t count_;
  T* data_ = nullptr;
};

int failures = 0;
// Data and scalars differ from launch to launch: what a block leaves in shared memory must not pass for the
// next's.
uint32_t launches = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "DIFFERS: %s\n", what.c_str());
  ++failures;
}

template <typename T>
void fill_normal(Memory<T>& memory, int64_t numel, double scale, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0, scale);
  for (int64_t i = 0; i < numel; ++i) {
    if constexpr (std::is_same_v<T, double>) {
      memory[i] = normal(generator);
    } else {
      store(memory[i], static_cast<float>(normal(generator)));
    }
  }
}

StepScalars ordinary_scalars(double weight_decay) {
  StepScalars s;
  s.grad_scale = 0.25, s.lr = 2.5e-2, s.beta1 = 0.9, s.beta2 = 0.99, s.bias_correction2 = 0.05, s.eps = 1e-8;
  s.weight_decay = weight_decay, s.y_weight_before = 0.1, s.c = 0.2, s.y_weight = 0.15;
  return s;
}

/// A shard of a few parameters. The last ends where the shard's memory ends; every third is unused.
struct Spans {
  std::vector<SpanOnDevice> table;

  /// With a skew, gradients are not aligned to 16 bytes, as those that autograd made may be.
  template <typename Grad>
  Spans(Memory<Grad>& gradient, Memory<Grad>& flags, const std::vector<int64_t>& sizes, int64_t skew = 0) {
    int64_t begin = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      Grad& flag = flags[static_cast<int64_t>(i)];
      store(flag, used(i) ? 2.0F : 0.0F);
      table.push_back({gradient.data() + begin + skew, begin, sizes[i], i == 0 ? nullptr : &flag});
      begin += (sizes[i] + 63) / 64 * 64;
    }
  }
  static bool used(size_t i) { return i % 3 != 2; }
  int64_t count() const { return static_cast<int64_t>(table.size()); }
  int64_t shard_numel() const { return table.back().begin + table.back().numel; }
};

// Longer than a tile, of one element, none, and with an end inside a pack.
const std::vector<int64_t> kSizes = {9003, 1, 500, 4096, 77, 12, 0, 30};
constexpr int64_t kShard = 9024 + 64 + 512 + 4096 + 128 + 64 + 30;

template <typename Param, typename Grad>
void run_update(Rule rule, double weight_decay, bool found_inf, int64_t skew = 0, bool with_nan = false) {
  using Real = typename StateOf<Param>::type;
  Memory<Grad> gradient(kShard + skew), flags(8);
  Spans spans(gradient, flags, kSizes, skew);
  expect(spans.shard_numel() == kShard, "the shard's size");
  Memory<Param> y(kShard);
  for (SpanOnDevice& span : spans.table) span.y = y.data() + span.begin;
  Memory<Real> a(kShard), b(kShard), c(kShard), d(kShard);
  fill_normal(gradient, kShard + skew, 0.1, 1);
  fill_normal(a, kShard, 1, 2), fill_normal(b, kShard, 1, 3), fill_normal(c, kShard, 0.1, 4);
  fill_normal(d, kShard, 0.1, 5);
  for (int64_t i = 0; i < kShard; ++i) c[i] = c[i] * c[i], d[i] = d[i] * d[i];
  // Of several threads, which all say so.
  for (const int64_t i : {0, 777, 9000}) {
    if (with_nan) store(gradient[i + skew], std::numeric_limits<float>::quiet_NaN());
  }
  Memory<Param> expected_y(y);
  Memory<Real> expected_a(a), expected_b(b), expected_c(c), expected_d(d);

  StepScalars scalars = ordinary_scalars(weight_decay);
  scalars.lr /= ++launches;
  const GradientNorm norm{3, 0.5, found_inf ? 1 : 0};
  if (!found_inf) {
    StepScalars clipped = scalars;
    clipped.grad_scale *= norm.clip_factor;
    with_rule(rule, scalars, [&](auto chosen) {
      using Chosen = decltype(chosen);
      const typename Chosen::template Coefficients<Real> s(clipped);
      for (size_t k = 0; k < kSizes.size(); ++k) {
        const SpanOnDevice& span = spans.table[k];
        for (int64_t j = 0; j < span.numel && spans.used(k); ++j) {
          const int64_t i = span.begin + j;
          const auto g = static_cast<Real>(load(static_cast<const Grad*>(span.values)[j]));
          store(
              expected_y[i], Chosen::apply(g, expected_a[i], expected_b[i], expected_c[i], expected_d[i], s));
        }
      }
    });
  }
  const bool has_fourth = rule == Rule::adamw_schedule_free_momentum;
  const bool has_third = has_fourth || rule == Rule::adamw_schedule_free || rule == Rule::adamw;
  int32_t not_finite = 0;
  cuda::launch_update<Param, Grad>(rule, scalars,
      {{a.data(), b.data(), has_third ? c.data() : nullptr, has_fourth ? d.data() : nullptr}, kShard,
          spans.table.data(), spans.count(), &scalars, &norm, &not_finite},
      1, nullptr);
  expect(not_finite == (with_nan && !found_inf ? 1 : 0), "not finite");
  expect(y.same_bits(expected_y) && a.same_bits(expected_a) && b.same_bits(expected_b) &&
             c.same_bits(expected_c) && d.same_bits(expected_d),
      "update");
}

template <typename Param>
void run_interpolate() {
  using Real = typename StateOf<Param>::type;
  constexpr int64_t kNumel = 5003;
  Memory<Param> out(kNumel), expected(kNumel);
  Memory<Real> x(kNumel), z(kNumel);
  fill_normal(x, kNumel, 1, 5), fill_normal(z, kNumel, 1, 6);
  const Lerp<Real> how(0.3);
  for (int64_t i = 0; i < kNumel; ++i) store(expected[i], interpolate_element(x[i], z[i], how));
  cuda::launch_interpolate<Param>(out.data(), x.data(), z.data(), 0.3, kNumel, 1, nullptr);
  expect(out.same_bits(expected), "interpolate");
}

/// The order of summation.h, on one thread.
template <typename Grad>
double sum_of(const Grad* data, int64_t numel) {
  double lanes[kSumLanes] = {};
  for (int64_t tile = 0; tile * kSumTileNumel < numel; ++tile) {
    double groups[kSumGroups] = {};
    for (int64_t group = 0; group < kSumGroups; ++group) {
      double columns[kSumColumns] = {};
      for (int64_t j = 0; j < kSumGroupNumel; ++j) {
        const int64_t i = tile * kSumTileNumel + group * kSumGroupNumel + j;
        if (i >= numel) break;
        const double value = static_cast<double>(load(data[i]));
        columns[j % kSumColumns] = fused_multiply_add(value, value, columns[j % kSumColumns]);
      }
      groups[group] = add_pairwise<kSumColumns>(columns);
    }
    lanes[tile % kSumLanes] += add_pairwise<kSumGroups>(groups);
  }
  return add_pairwise<kSumLanes>(lanes);
}

template <typename Grad>
void run_sum(bool many_spans) {
  const std::vector<int64_t> sizes = many_spans ? kSizes : std::vector<int64_t>{3 * kSumTileNumel + 601};
  const int64_t shard = many_spans ? kShard : sizes[0];
  Memory<Grad> gradient(shard), flags(8);
  fill_normal(gradient, shard, 1, ++launches);
  const Spans spans(gradient, flags, sizes);
  double expected = 0.125;
  for (size_t k = 0; k < sizes.size(); ++k) {
    if (spans.used(k)) expected += sum_of(static_cast<const Grad*>(spans.table[k].values), sizes[k]);
  }
  Memory<double> workspace(cuda::tile_count(shard, spans.count(), kSumTileNumel)), sum(1);
  sum[0] = 0.125;
  cuda::launch_sum_of_powers<Grad>(
      2, spans.table.data(), spans.count(), shard, workspace.data(), sum.data(), nullptr);
  expect(sum[0] == expected, "sum of squares");

  GradientNorm norm;
  const StepScalars scalars = ordinary_scalars(0);
  cuda::launch_gradient_norm(sum.data(), &scalars, 1.0, true, false, &norm, nullptr);
  const double expected_norm = std::sqrt(expected) * 0.25;
  expect(
      norm.norm == expected_norm && norm.clip_factor == 1.0 / (expected_norm + 1e-6) && norm.found_inf == 0,
      "gradient norm");
  sum[0] = std::numeric_limits<double>::infinity();
  cuda::launch_gradient_norm(sum.data(), &scalars, -1, true, true, &norm, nullptr);
  expect(norm.clip_factor == 1 && norm.found_inf == 1, "overflow");
}

template <typename Grad>
void run_clamp(int64_t skew) {
  Memory<Grad> gradient(kShard + skew), flags(8);
  fill_normal(gradient, kShard + skew, 1, ++launches);
  Memory<Grad> expected(gradient);
  const Spans spans(gradient, flags, kSizes, skew);
  for (size_t k = 0; k < kSizes.size(); ++k) {
    for (int64_t j = 0; j < kSizes[k] && spans.used(k); ++j) {
      Grad& g = expected[spans.table[k].begin + skew + j];
      const float value = load(g);
      if (std::abs(value) > 0.5F) store(g, std::copysign(0.5F, value));
    }
  }
  cuda::launch_clamp_gradient<Grad>(spans.table.data(), spans.count(), kShard, 0.5, 1, nullptr);
  expect(gradient.same_bits(expected), "clamp");
}

/// Slots of which one is cut by a slice, one has no gradient and one is not aligned; gaps are of several lengths.
template <typename To, typename From>
void run_pack(double weight, int64_t slot_count) {
  constexpr int64_t kRanks = 3, kFlags = 1600, kReport = 64;
  const auto size = [](int64_t slot) { return slot == 1 ? int64_t{3000} : 1 + slot * 7 % 64; };
  std::vector<cuda::PackSlot> slots;
  int64_t end = 0;
  for (int64_t s = 0; s < slot_count; ++s) {
    slots.push_back({nullptr, end, size(s),
        sizeof(From) == 4 ? cuda::ElementType::float32 : cuda::ElementType::bfloat16});
    end += (size(s) + 63) / 64 * 64;
  }
  const int64_t shard = (end / kRanks + 64) / 64 * 64, slice = shard + kFlags + kReport;
  std::vector<Memory<From>> gradients;
  gradients.reserve(slots.size());
  Memory<To> report(kReport), buffer(kRanks * slice), expected(kRanks * slice);
  fill_normal(report, kReport, 1, ++launches);
  for (int64_t s = 0; s < slot_count; ++s) {
    const int64_t skew = s % 5 == 2 ? 1 : 0;
    gradients.emplace_back(size(s) + skew);
    fill_normal(gradients.back(), size(s) + skew, 1, ++launches);
    cuda::PackSlot& slot = slots[static_cast<size_t>(s)];
    if (s % 5 != 3) slot.gradient = gradients.back().data() + skew;
    for (int64_t i = 0; i < slot.numel && slot.gradient != nullptr; ++i) {
      const int64_t at = slot.begin + i;
      store(expected[at / shard * slice + at % shard],
          load(static_cast<const From*>(slot.gradient)[i]) * static_cast<float>(weight));
    }
  }
  for (int64_t r = 0; r < kRanks; ++r) {
    int64_t flag = 0;
    for (const cuda::PackSlot& slot : slots) {
      if (slot.begin >= (r + 1) * shard || slot.begin + slot.numel <= r * shard) continue;
      store(expected[r * slice + shard + flag++], slot.gradient == nullptr ? 0.0F : 1.0F);
    }
    for (int64_t i = 0; i < kReport; ++i) expected[r * slice + shard + kFlags + i] = report[i];
  }
  std::memset(buffer.data(), 0xff, static_cast<size_t>(kRanks * slice) * sizeof(To));
  cuda::launch_pack<To>({buffer.data(), kRanks, shard, kFlags, slice, report.data(), weight}, slots.data(),
      slot_count, 1, nullptr);
  expect(buffer.same_bits(expected), "pack");
}

}  // namespace

int main() {
#ifdef CUDA_SHIM_OS_THREADS
  // What threads share is the same for every type, and threads of the system are slow to come by.
  run_update<float, float>(Rule::adamw_schedule_free, 0.1, false);
  run_update<float, float>(Rule::adamw_schedule_free, 0.1, false, 0, true);
  run_sum<float>(true);
  run_sum<BFloat16>(false);
  run_clamp<float>(0);
  run_pack<float, float>(1, 20);
#else
  for (const uint32_t order : {0, 1, 2, 3}) {
    cuda_shim::set_order(order);
    run_update<float, float>(Rule::adamw_schedule_free, 0.1, false);
    run_update<BFloat16, BFloat16>(Rule::adamw_schedule_free, 0, false);
    run_update<BFloat16, BFloat16>(Rule::adamw_schedule_free_momentum, 0.1, false);
    run_update<float, float>(Rule::adamw_schedule_free, 0.1, true);
    run_update<float, float>(Rule::sgd, 0, false, 1);
    run_update<float, float>(Rule::sgd_schedule_free, 0, false, 1, true);
    run_update<BFloat16, BFloat16>(Rule::adamw, 0, false, 0, true);
    run_update<BFloat16, BFloat16>(Rule::adamw, 0, true, 0, true);
    run_clamp<float>(0);
    run_clamp<BFloat16>(1);
    run_interpolate<BFloat16>();
    run_pack<float, BFloat16>(0.5, 20);
    run_pack<BFloat16, float>(1, 1500);
    for (const bool many_spans : {false, true}) {
      run_sum<float>(many_spans);
      run_sum<BFloat16>(many_spans);
    }
  }
  // Gigabytes of memory, not for kernels that are wrong already.
  if (failures == 0) expect(run_beyond_int(), "elements beyond 2^31");
#endif
  if (failures == 0) std::printf("every bit is as expected\n");
  return failures == 0 ? 0 : 1;
}
