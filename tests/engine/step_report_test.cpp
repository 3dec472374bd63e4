// What ranks tell each other in the elements of a reduce-scatter: exact, whatever the type and the number of ranks.
#include "engine/step_report.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace zerosched::detail {
namespace {

const std::vector<at::ScalarType> kDtypes = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf, at::kLong};

// As a transport sums: 16-bit types in float32, and rounded once.
StepReport reduced(const ReportCodec& codec, at::ScalarType dtype, const std::vector<OwnReport>& reports) {
  at::Tensor sum;
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    at::Tensor own = at::empty({codec.numel()}, dtype);
    codec.encode(reports[rank], static_cast<int64_t>(rank), own.data_ptr());
    if (own.element_size() == 2) own = own.to(at::kFloat);
    sum = sum.defined() ? sum + own : own;
  }
  sum = sum.to(dtype);
  return codec.decode(sum.const_data_ptr());
}

TEST(StepReport, ValuesOfRankZeroComeToTheBit) {
  const std::vector<double> values = {0.0025, -0.0, 1e-300, std::nextafter(1.0, 2.0), 123456789012345.0,
      std::numeric_limits<double>::infinity(), -1.0 / 3};
  const std::vector<double> last(values.rbegin(), values.rend());
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t size : {1, 2, 3, 300}) {
      const ReportCodec codec(dtype, static_cast<int64_t>(values.size()), size);
      EXPECT_EQ(codec.numel() * static_cast<int64_t>(c10::elementSize(dtype)) % 128, 0);
      std::vector<OwnReport> reports(static_cast<size_t>(size));
      for (OwnReport& report : reports)
        report.values = report.last_values = std::vector<double>(values.size(), 77);
      reports[0].values = values;
      reports[0].last_values = last;
      reports[0].gradient_factor = 0.3;
      reports[0].values_are_final = true;
      const StepReport report = reduced(codec, dtype, reports);
      ASSERT_EQ(report.values, values) << c10::toString(dtype) << ", " << size << " ranks";
      ASSERT_EQ(report.last_values, last);
      EXPECT_EQ(report.gradient_factor, 0.3);
      EXPECT_TRUE(report.values_are_final);
      EXPECT_TRUE(std::signbit(report.values[1]));
    }
  }
}

TEST(StepReport, WithoutRankZerosValuesThereAreNone) {
  for (const at::ScalarType dtype : kDtypes) {
    std::vector<OwnReport> reports(3);
    reports[1].values = reports[1].last_values = {1, 2};
    reports[0].has_joined = true;
    const StepReport report = reduced(ReportCodec(dtype, 2, 3), dtype, reports);
    EXPECT_TRUE(report.values.empty());
    EXPECT_TRUE(report.last_values.empty());
    EXPECT_EQ(report.joined, 1);
  }
}

TEST(StepReport, CountsAndWeightsAreExactForManyRanks) {
  for (const at::ScalarType dtype : kDtypes) {
    for (const int64_t size : {1, 255, 1000}) {
      const ReportCodec codec(dtype, 1, size);
      std::vector<OwnReport> reports(static_cast<size_t>(size));
      double weights = 0;
      int64_t given = 0, suspecting = 0, not_finite = 0;
      for (int64_t rank = 0; rank < size; ++rank) {
        OwnReport& report = reports[static_cast<size_t>(rank)];
        report.weight = static_cast<double>(4096 + rank * 7);
        weights += report.weight;
        given += (report.weight_is_given = rank % 2 == 0) ? 1 : 0;
        suspecting += (report.suspects_writes = rank % 3 == 0) ? 1 : 0;
        not_finite += (report.is_not_finite = true) ? 1 : 0;
      }
      const StepReport report = reduced(codec, dtype, reports);
      if (dtype != at::kLong) {
        EXPECT_EQ(report.weight_sum, weights) << c10::toString(dtype) << ", " << size << " ranks";
      }
      EXPECT_EQ(report.given_weights, given);
      EXPECT_EQ(report.suspecting, suspecting);
      EXPECT_EQ(report.not_finite, not_finite);
      EXPECT_EQ(report.joined, 0);
    }
  }
}

TEST(StepReport, WeightsOf16BitTypesAreCountedIn65536ths) {
  const ReportCodec codec(at::kBFloat16, 0, 2);
  EXPECT_EQ(codec.counted(7), 7);
  EXPECT_EQ(codec.counted(0.5), 0.5);
  EXPECT_NEAR(codec.counted(0.3), 0.3, 1.0 / 65536);
  EXPECT_EQ(codec.counted(4294967295.0), 4294967295.0);
  EXPECT_THROW(codec.counted(4294967296.0), c10::Error);
  EXPECT_EQ(ReportCodec(at::kDouble, 0, 2).counted(0.3), 0.3);
  EXPECT_EQ(ReportCodec(at::kFloat, 0, 2).counted(0.3), static_cast<double>(0.3F));
}

}  // namespace
}  // namespace zerosched::detail
