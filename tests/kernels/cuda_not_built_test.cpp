// What stands in for the CUDA kernels in a build without CUDA, whatever this build is.
#include "kernels/cuda/cuda_kernels.h"

#include <c10/util/Exception.h>

#include <gtest/gtest.h>

#include <string>

namespace zerosched::kernels::cuda {
namespace {

template <typename Function>
void expect_names_the_option(const Function& function) {
  try {
    function();
    FAIL() << "nothing was thrown";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("-DZEROSCHED_CUDA=ON"), std::string::npos) << error.what();
  }
}

TEST(CudaNotBuilt, EveryCallNamesTheOption) {
  const auto dtype = c10::ScalarType::Float;
  expect_names_the_option([&] { update(Rule::sgd, StepScalars(), dtype, dtype, ShardUpdate(), nullptr); });
  expect_names_the_option([&] { interpolate(dtype, nullptr, nullptr, nullptr, 0, 0, nullptr); });
  expect_names_the_option([&] { sum_of_squares_workspace_numel(0, 0); });
  expect_names_the_option([&] { sum_of_squares(dtype, nullptr, 0, 0, nullptr, nullptr, nullptr); });
  expect_names_the_option([&] { sum_of_powers(dtype, 1, nullptr, 0, 0, nullptr, nullptr, nullptr); });
  expect_names_the_option(
      [&] { inner_product(dtype, 1, nullptr, nullptr, nullptr, 0, 0, nullptr, nullptr, nullptr); });
  expect_names_the_option([&] { squares_by_parameter(dtype, nullptr, 0, 0, nullptr, nullptr, nullptr); });
  expect_names_the_option([&] { max_abs(dtype, nullptr, 0, 0, nullptr, nullptr, nullptr); });
  expect_names_the_option([&] { clamp_gradient(dtype, nullptr, 0, 0, 1, nullptr); });
  expect_names_the_option([&] { pack(dtype, PackBucket(), nullptr, 0, nullptr); });
  expect_names_the_option(
      [&] { gradient_norm(nullptr, nullptr, std::nullopt, false, dtype, nullptr, nullptr); });
}

}  // namespace
}  // namespace zerosched::kernels::cuda
