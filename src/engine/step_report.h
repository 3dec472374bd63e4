#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// What one rank tells the others of its step. It travels with the gradients of one bucket, so it costs no message.
struct OwnReport {
  /// What the rank steps with, in the order of Steering: as far as it is known now, and in its last step. Empty where
  /// another rank's count, and before the first step.
  std::vector<double> values, last_values;
  bool values_are_final = false;  ///< of this step; otherwise they are those of its first gradient
  double gradient_factor = 1;     ///< what the trainer has multiplied it with: see GradientEdits
  double weight = 1;              ///< of its gradient in the average
  bool weight_is_given = false;   ///< by the trainer, and not 1 because nobody said
  bool has_joined = false;        ///< out of batches: see ShardedOptimizer::join()
  bool suspects_writes = false;   ///< some parameter may have been written by others than the optimizer
  bool is_not_finite = false;     ///< a gradient of its own, as far as it has seen them
};

/// The same of all ranks.
struct StepReport {
  std::vector<double> values, last_values;  ///< rank 0's; empty if it has joined
  bool values_are_final = false;            ///< rank 0's
  double gradient_factor = 1;               ///< rank 0's
  double weight_sum = 0;
  int64_t given_weights = 0;  ///< how many ranks ...
  int64_t joined = 0;
  int64_t suspecting = 0;
  int64_t not_finite = 0;
};

/// Turns reports into elements of a gradient's type whose sum over ranks is the report of all, exactly.
///
/// Numbers that only one rank gives are cut into integers that the type holds exactly; everyone else adds 0. Counts are
/// kept per 128 ranks, so that bfloat16, which has integers up to 256, holds them at any number of ranks. Weights are
/// summed as they are, but for 16-bit types, where they are counted in 65536ths, bit by bit.
class ReportCodec {
 public:
  /// dtype: float64, float32, bfloat16, float16 or int64. value_count: of OwnReport::values.
  ReportCodec(c10::ScalarType dtype, int64_t value_count, int64_t world_size);

  /// Elements of a report, a multiple of 128 bytes.
  int64_t numel() const { return numel_; }
  /// The weight that is counted for `weight`: itself, but for 16-bit types.
  double counted(double weight) const;
  /// Writes numel() elements to `out`.
  void encode(const OwnReport& report, int64_t rank, void* out) const;
  /// Reads the sum over ranks of what they have encoded.
  StepReport decode(const void* sums) const;

 private:
  bool counts_weight_bits() const;
  int64_t digits_per_value() const;

  c10::ScalarType dtype_;
  int64_t value_count_;
  int64_t rank_groups_;  ///< counts per kind
  int64_t numel_;
};

}  // namespace zerosched::detail
