// What a parameter's gradient is, in whatever form backward has left it.
#include "engine/parameter_gradients.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>

namespace zerosched::detail {
namespace {

class ParameterGradients : public ::testing::Test {
 protected:
  using Gradients = zerosched::detail::ParameterGradients;

  Gradients make(const at::Tensor& parameter, bool consume = true, bool guard = false) {
    layout =
        make_layout({{"w", parameter.sizes().vec(), parameter.strides().vec(), parameter.scalar_type(), 0}},
            {1 << 20, 1 << 20, at::ScalarType::Undefined}, 1);
    return Gradients({parameter}, {"w"}, layout, executor, consume, guard);
  }

  Layout layout;
  HostExecutor executor;
};

TEST_F(ParameterGradients, AreInTheMemoryOrderOfTheParameter) {
  const at::Tensor parameter = at::zeros({3, 4}).t().requires_grad_();  // 4 x 3, columns first
  const at::Tensor gradient = at::arange(12, at::kFloat).view({4, 3});
  parameter.mutable_grad() = gradient;
  Gradients gradients = make(parameter);
  EXPECT_TRUE(at::equal(gradients.take(0), gradient.t().reshape({-1})));
  EXPECT_FALSE(parameter.grad().defined());
  EXPECT_TRUE(gradients.used()[0]);
}

TEST_F(ParameterGradients, MayBeSparse) {
  const at::Tensor parameter = at::zeros({4, 2}).requires_grad_();
  const at::Tensor dense = at::arange(8, at::kFloat).view({4, 2});
  parameter.mutable_grad() = dense.to_sparse(1);
  EXPECT_TRUE(at::equal(make(parameter).take(0), dense.reshape({-1})));
}

TEST_F(ParameterGradients, OfAnotherShapeAreRefused) {
  const at::Tensor parameter = at::zeros({4}).requires_grad_();
  Gradients gradients = make(parameter);
  parameter.mutable_grad() = at::zeros({4});
  parameter.mutable_grad().unsafeGetTensorImpl()->set_sizes_contiguous({2, 2});
  EXPECT_THROW(gradients.take(0), c10::Error);
}

TEST_F(ParameterGradients, StayWhereTheyAreTheUsers) {
  const at::Tensor parameter = at::zeros({3}).requires_grad_();
  const at::Tensor gradient = at::ones({3});
  parameter.mutable_grad() = gradient;
  Gradients gradients = make(parameter, /*consume=*/false);
  const auto seen = gradients.see(0);
  EXPECT_EQ(gradients.take(0).const_data_ptr(), gradient.const_data_ptr());
  EXPECT_TRUE(parameter.grad().is_same(gradient));
  gradients.check_untouched(0, seen);
  parameter.mutable_grad().mul_(2);
  EXPECT_THROW(gradients.check_untouched(0, seen), c10::Error);
}

// 256 and then 256 times 2^-6: in bfloat16 the sum would stay at 256.
TEST_F(ParameterGradients, Of16BitsAreAccumulatedInFloat32) {
  const at::Tensor parameter = at::zeros({2}, at::kBFloat16).requires_grad_();
  Gradients gradients = make(parameter);
  for (int i = 0; i < 257; ++i) {
    parameter.mutable_grad() = at::full({2}, i == 0 ? 256.0 : 1.0 / 64, at::kBFloat16);
    gradients.accumulate(0);
    EXPECT_FALSE(parameter.grad().defined());
    EXPECT_TRUE(gradients.has(0));
  }
  parameter.mutable_grad() = at::full({2}, 2.0, at::kBFloat16);
  EXPECT_EQ(gradients.take(0).to(at::kFloat)[0].item<float>(), 262);
  EXPECT_FALSE(gradients.has(0));
}

TEST_F(ParameterGradients, LeaveAGuardBehind) {
  const at::Tensor parameter = at::zeros({3}).requires_grad_();
  Gradients gradients = make(parameter, true, /*guard=*/true);
  parameter.mutable_grad() = at::ones({3});
  gradients.take(0);
  gradients.guard(0);
  EXPECT_TRUE(parameter.grad().defined());
  EXPECT_FALSE(gradients.has(0));
  EXPECT_THROW(parameter.grad().sum(), c10::Error);
  gradients.drop_guards();
  EXPECT_FALSE(parameter.grad().defined());
}

TEST_F(ParameterGradients, AreDroppedOrZeroed) {
  for (const bool consume : {true, false}) {
    const at::Tensor parameter = at::zeros({3}).requires_grad_();
    Gradients gradients = make(parameter, consume);
    parameter.mutable_grad() = at::ones({3});
    gradients.drop(/*set_to_none=*/false);
    EXPECT_EQ(parameter.grad().defined(), !consume);
    const float sum = consume ? 0 : parameter.grad().sum().item<float>();
    EXPECT_EQ(sum, 0);
    parameter.mutable_grad() = at::ones({3});
    gradients.drop(/*set_to_none=*/true);
    EXPECT_FALSE(parameter.grad().defined());
  }
}

}  // namespace
}  // namespace zerosched::detail
