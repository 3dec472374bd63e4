#pragma once

#include "engine/reference.h"

#include <zerosched/adamw_schedulefree.h>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

// Models that are nothing but parameters: the loss is sum(p * G), so the gradient of p is exactly G.
namespace zerosched::testing {

using Gradients = std::map<std::string, at::Tensor>;  ///< by parameter name; undefined or missing: not used
using State = std::map<std::string, std::map<std::string, at::Tensor>>;  ///< "z", "x", "v", "y"

/// Leaves "p0", "p1", ... with the same random values on every rank.
NamedParameters make_parameters(
    const std::vector<std::vector<int64_t>>& shapes, at::ScalarType dtype = at::kFloat);

/// Those of a module, under their names.
NamedParameters parameters_of(const torch::nn::Module& module);

/// Shapes with everything odd: 7 elements, 71, 0-dimensional, empty, larger than most buckets.
std::vector<std::vector<int64_t>> odd_shapes();

/// Random numbers that depend on the arguments alone.
at::Tensor random_like(const at::Tensor& tensor, int64_t step, int64_t rank, int64_t parameter);

/// One for every parameter.
Gradients random_gradients(const NamedParameters& parameters, int64_t step, int64_t rank);

/// The mean over `size` ranks, in double, of what `of_rank` gives; parameters that no rank used are left out.
Gradients mean_gradients(int size, const std::function<Gradients(int rank)>& of_rank);

/// Runs backward so that parameters get these gradients. Their hooks fire in the reverse order of `order`
/// (indices into `parameters`; by default all, so that the last registered is ready first).
void backward(const NamedParameters& parameters, const Gradients& gradients, std::vector<size_t> order = {});

/// Sets .grad by hand.
void set_gradients(const NamedParameters& parameters, const Gradients& gradients);

/// All of z, x, v, y. Collective.
State full_state(ShardedOptimizer& optimizer);

bool same_bits(const at::Tensor& a, const at::Tensor& b);
void expect_same_bits(const State& a, const State& b);
/// The parameters hold y, and it is the same on every rank. Collective.
void expect_parameters_are(
    const NamedParameters& parameters, const std::map<std::string, at::Tensor>& values);

/// max|a - b| / max|b| of every tensor of z, x, v, y.
void expect_close(const State& state, const Reference& reference, double tolerance = 4e-6);

/// Runs `function`, which must throw on this rank, and looks for all `parts` in what it says.
void expect_error(const std::function<void()>& function, const std::vector<std::string>& parts);

/// Buckets of `bytes`, the first one too.
ShardingOptions buckets_of(int64_t bytes);

}  // namespace zerosched::testing
