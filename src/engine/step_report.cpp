#include "engine/step_report.h"

#include "base/check.h"
#include "kernels/element_types.h"

#include <cmath>
#include <cstring>

namespace zerosched::detail {
namespace {

constexpr int64_t kAlignmentBytes = 128;
// Ranks that one count stands for: far below 256, from which on bfloat16 skips integers.
constexpr int64_t kRanksPerCount = 128;
enum Count { kReporting, kFinal, kGivenWeights, kJoined, kSuspecting, kNotFinite, kCounts };

// Weights of 16-bit types: this many bits, of which so many are behind the point.
constexpr int64_t kWeightBits = 48;
constexpr int kWeightFractionBits = 16;

// Bits of an integer that the type holds exactly.
int64_t digit_bits(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Long:
      return 64;
    case c10::ScalarType::Double:
      return 32;
    case c10::ScalarType::Float:
      return 22;
    default:
      return 8;
  }
}

class Writer {
 public:
  Writer(c10::ScalarType dtype, void* out) : dtype_(dtype), out_(out) {}

  void add(uint64_t integer) {
    switch (dtype_) {
      case c10::ScalarType::Long:
        static_cast<uint64_t*>(out_)[at_++] = integer;
        return;
      case c10::ScalarType::Double:
        static_cast<double*>(out_)[at_++] = static_cast<double>(integer);
        return;
      default:
        add(static_cast<float>(integer));
    }
  }
  void add(float value) {
    switch (dtype_) {
      case c10::ScalarType::BFloat16:
        kernels::store(static_cast<kernels::BFloat16*>(out_)[at_++], value);
        return;
      case c10::ScalarType::Half:
        kernels::store(static_cast<kernels::Float16*>(out_)[at_++], value);
        return;
      default:
        static_cast<float*>(out_)[at_++] = value;
    }
  }
  void add(double value) {
    if (dtype_ == c10::ScalarType::Double) {
      static_cast<double*>(out_)[at_++] = value;
    } else {
      add(static_cast<float>(value));
    }
  }
  int64_t at() const { return at_; }

 private:
  c10::ScalarType dtype_;
  void* out_;
  int64_t at_ = 0;
};

class Reader {
 public:
  Reader(c10::ScalarType dtype, const void* in) : dtype_(dtype), in_(in) {}

  double real() {
    switch (dtype_) {
      case c10::ScalarType::Double:
        return static_cast<const double*>(in_)[at_++];
      case c10::ScalarType::BFloat16:
        return kernels::load(static_cast<const kernels::BFloat16*>(in_)[at_++]);
      case c10::ScalarType::Half:
        return kernels::load(static_cast<const kernels::Float16*>(in_)[at_++]);
      default:
        return static_cast<const float*>(in_)[at_++];
    }
  }
  uint64_t integer() {
    if (dtype_ == c10::ScalarType::Long) return static_cast<const uint64_t*>(in_)[at_++];
    return static_cast<uint64_t>(real());
  }

 private:
  c10::ScalarType dtype_;
  const void* in_;
  int64_t at_ = 0;
};

uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint64_t in_weight_units(double weight) {
  return static_cast<uint64_t>(std::llround(std::ldexp(weight, kWeightFractionBits)));
}

}  // namespace

ReportCodec::ReportCodec(c10::ScalarType dtype, int64_t value_count, int64_t world_size)
    : dtype_(dtype),
      value_count_(value_count),
      rank_groups_((world_size + kRanksPerCount - 1) / kRanksPerCount) {
  const int64_t weight_numel = counts_weight_bits() ? kWeightBits * rank_groups_ : 1;
  const int64_t used = kCounts * rank_groups_ + weight_numel + (2 * value_count + 1) * digits_per_value();
  const int64_t alignment = kAlignmentBytes / static_cast<int64_t>(c10::elementSize(dtype));
  numel_ = (used + alignment - 1) / alignment * alignment;
}

bool ReportCodec::counts_weight_bits() const { return c10::elementSize(dtype_) == 2; }

int64_t ReportCodec::digits_per_value() const {
  const int64_t bits = digit_bits(dtype_);
  return (64 + bits - 1) / bits;
}

double ReportCodec::counted(double weight) const {
  double counted = weight;
  if (counts_weight_bits()) {
    const bool fits =
        std::ldexp(weight, kWeightFractionBits) < std::ldexp(1.0, static_cast<int>(kWeightBits));
    counted = fits ? std::ldexp(static_cast<double>(in_weight_units(weight)), -kWeightFractionBits) : 0;
  } else if (dtype_ == c10::ScalarType::Float) {
    counted = static_cast<float>(weight);
  }
  ZEROSCHED_CHECK(std::isfinite(counted) && std::abs(counted - weight) <= 0.01 * weight, "step_weight(",
      weight, ") is not a weight that gradients of type ", c10::toString(dtype_),
      " can be averaged with: with 16-bit types weights are counted in 65536ths and below 2^32. Only the "
      "ratios of "
      "weights matter: give numbers of samples or tokens.");
  return counted;
}

void ReportCodec::encode(const OwnReport& report, int64_t rank, void* out) const {
  Writer writer(dtype_, out);
  // Rank 0's values are everyone's; where it gives none the count says so.
  const bool gives_values = rank == 0 && !report.values.empty();
  const bool flags[kCounts] = {gives_values, gives_values && report.values_are_final, report.weight_is_given,
      report.has_joined, report.suspects_writes, report.is_not_finite};
  for (const bool flag : flags) {
    for (int64_t group = 0; group < rank_groups_; ++group) {
      writer.add(uint64_t{flag && group == rank / kRanksPerCount ? 1U : 0U});
    }
  }
  if (counts_weight_bits()) {
    const uint64_t units = in_weight_units(report.weight);
    for (int64_t group = 0; group < rank_groups_; ++group) {
      for (int64_t bit = 0; bit < kWeightBits; ++bit) {
        writer.add(group == rank / kRanksPerCount ? (units >> bit) & 1U : uint64_t{0});
      }
    }
  } else {
    dtype_ == c10::ScalarType::Long ? writer.add(uint64_t{0}) : writer.add(report.weight);
  }
  const int64_t bits = digit_bits(dtype_);
  const uint64_t mask = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
  const auto add = [&](double value) {
    uint64_t rest = bits_of(value);
    for (int64_t digit = 0; digit < digits_per_value(); ++digit) {
      writer.add(rest & mask);
      rest = bits == 64 ? 0 : rest >> bits;
    }
  };
  for (const std::vector<double>* values : {&report.values, &report.last_values}) {
    const bool gives = gives_values && !values->empty();
    for (int64_t v = 0; v < value_count_; ++v) add(gives ? (*values)[static_cast<size_t>(v)] : 0);
  }
  add(rank == 0 ? report.gradient_factor : 0);
  while (writer.at() < numel_) writer.add(uint64_t{0});
}

StepReport ReportCodec::decode(const void* sums) const {
  Reader reader(dtype_, sums);
  int64_t counts[kCounts] = {};
  for (int64_t& count : counts) {
    for (int64_t group = 0; group < rank_groups_; ++group) count += static_cast<int64_t>(reader.integer());
  }
  StepReport report;
  report.values_are_final = counts[kFinal] > 0;
  report.given_weights = counts[kGivenWeights];
  report.joined = counts[kJoined];
  report.suspecting = counts[kSuspecting];
  report.not_finite = counts[kNotFinite];
  if (counts_weight_bits()) {
    for (int64_t group = 0; group < rank_groups_; ++group) {
      for (int64_t bit = 0; bit < kWeightBits; ++bit) {
        report.weight_sum += std::ldexp(reader.real(), static_cast<int>(bit) - kWeightFractionBits);
      }
    }
  } else if (dtype_ == c10::ScalarType::Long) {
    reader.integer();
  } else {
    report.weight_sum = reader.real();
  }
  const int64_t bits = digit_bits(dtype_);
  const auto next = [&] {
    uint64_t whole = 0;
    for (int64_t digit = 0; digit < digits_per_value(); ++digit) whole |= reader.integer() << (digit * bits);
    return double_of(whole);
  };
  for (std::vector<double>* values : {&report.values, &report.last_values}) {
    for (int64_t v = 0; v < value_count_; ++v) values->push_back(next());
  }
  report.gradient_factor = next();
  if (counts[kReporting] == 0) {
    report.values.clear();
    report.last_values.clear();
  }
  return report;
}

}  // namespace zerosched::detail
