#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

namespace zerosched::detail {

/// Tells, where .grad is the user's, whether somebody has multiplied the gradients of all parameters with one number
/// between backward and step(). That is what torch::nn::utils::clip_grad_norm_ does, each rank with a number of its own,
/// and it leaves no other trace than the elements: it writes through Tensor::data(). Looks at a few of them.
class GradientEdits {
 public:
  /// `parameters` must outlive this.
  explicit GradientEdits(const std::vector<at::Tensor>& parameters);

  /// From a hook: backward has left this gradient, in host memory.
  void saw(int64_t parameter, const at::Tensor& gradient);
  /// The number that takes the gradients that backward left to those that are in .grad now; 1 if nobody has touched them,
  /// NaN if it is not one number, or too little is known.
  double factor() const;
  /// Whether two ranks' factors can only be those of clipping each by its own norm: neither enlarges, and they differ.
  bool look_like_clipping(double factor, double other) const;
  /// Forgets the gradients of this step.
  void clear();

  static constexpr int kSamples = 4;
  /// Magnitudes of a few elements, first and last among them; 0 where there are none.
  static std::array<double, kSamples> sample(const at::Tensor& gradient);

 private:
  struct Samples {
    bool known = false;
    std::array<double, kSamples> values = {};
  };
  const std::vector<at::Tensor>& parameters_;
  double rounding_;  ///< relative, of an element of the coarsest gradient
  std::vector<Samples> seen_;
};

}  // namespace zerosched::detail
