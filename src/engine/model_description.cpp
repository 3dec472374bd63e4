// What ranks compare at construction, and the checks of options.
#include "base/check.h"
#include "engine/model.h"
#include "layout/description.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <iomanip>
#include <limits>
#include <sstream>
#include <utility>

namespace zerosched::detail {
namespace {

void check_clamp(const ParameterGroup& group, size_t index) {
  const double low = group.clamp_low(), high = group.clamp_high();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // Written so that a NaN fails.
  ZEROSCHED_CHECK(low <= high && low < kInfinity && high > -kInfinity, "parameter group ", index, ": clamp(",
      low, ", ", high, ") is no box: low must be a number that is not above high.");
}

const char* name_of(NonFinite policy) {
  switch (policy) {
    case NonFinite::error:
      return "error";
    case NonFinite::skip:
      return "skip";
    case NonFinite::ignore:
      return "ignore";
  }
  return "?";
}

}  // namespace

void check_options(const std::vector<ParameterGroup>& groups, const torch::optim::OptimizerOptions& defaults,
    const ShardingOptions& sharding, const Algorithm& algorithm) {
  algorithm.check(defaults);
  for (size_t g = 0; g < groups.size(); ++g) {
    check_clamp(groups[g], g);
    if (!groups[g].has_options()) continue;
    try {
      algorithm.check(groups[g].options());
    } catch (c10::Error& error) {
      ZEROSCHED_CHECK(false, "parameter group ", g, ": ", error.msg());
    }
  }
  ZEROSCHED_CHECK(sharding.bucket_buffers() >= 1, "ShardingOptions::bucket_buffers must be at least 1, got ",
      sharding.bucket_buffers(), ".");
  ZEROSCHED_CHECK(!sharding.check_ready() || sharding.overlap_forward(),
      "ShardingOptions::check_ready looks for parameters that are used before ready(), which only "
      "overlap_forward asks for: set overlap_forward(true) too.");
  ZEROSCHED_CHECK(!sharding.max_grad_norm() || *sharding.max_grad_norm() > 0,
      "ShardingOptions::max_grad_norm must be positive, got ", sharding.max_grad_norm().value_or(0), ".");
}

std::vector<std::string> describe(const Model& model, const std::vector<ParameterGroup>& groups,
    const torch::optim::OptimizerOptions& defaults, const ShardingOptions& sharding,
    const Algorithm& algorithm) {
  std::vector<std::string> lines;
  std::ostringstream options;
  const auto bucket_bytes = sharding.bucket_bytes();
  options << std::setprecision(17)
          << "ShardingOptions(bucket_bytes=" << (bucket_bytes ? std::to_string(*bucket_bytes) : "default")
          << ", first_bucket_bytes=" << sharding.first_bucket_bytes()
          << ", bucket_buffers=" << sharding.bucket_buffers()
          << ", max_grad_norm=" << sharding.max_grad_norm().value_or(0) << ", reduce_dtype="
          << (sharding.reduce_dtype() ? c10::toString(*sharding.reduce_dtype()) : "default")
          << ", gradients=" << (sharding.gradients() == GradientInput::local ? "local" : "already_averaged")
          << ", overlap_backward=" << sharding.overlap_backward()
          << ", overlap_forward=" << sharding.overlap_forward() << ", check_ready=" << sharding.check_ready()
          << ", non_finite=" << name_of(sharding.non_finite()) << ", check_grad=" << sharding.check_grad()
          << ", broadcast_parameters=" << sharding.broadcast_parameters()
          << ", broadcast_buffers=" << sharding.broadcast_buffers() << ")";
  lines.push_back(options.str());
  for (size_t g = 0; g < groups.size(); ++g) {
    std::ostringstream line;
    line << std::setprecision(17) << "group " << g << " with " << algorithm.name() << '(';
    const char* separator = "";
    for (const auto& [name, value] :
        algorithm.values(groups[g].has_options() ? groups[g].options() : defaults)) {
      line << separator << name << '=' << value;
      separator = ", ";
    }
    line << ')';
    if (std::isfinite(groups[g].clamp_low()) || std::isfinite(groups[g].clamp_high())) {
      line << " clamped to [" << groups[g].clamp_low() << ", " << groups[g].clamp_high() << ']';
    }
    lines.push_back(line.str());
  }
  for (std::string& line : describe(model.specs)) lines.push_back(std::move(line));
  for (size_t f = 0; f < model.frozen.size(); ++f) {
    std::ostringstream line;
    line << "frozen parameter '" << model.frozen_names[f] << "' " << model.frozen[f].sizes() << ' '
         << c10::toString(model.frozen[f].scalar_type());
    lines.push_back(line.str());
  }
  for (size_t b = 0; b < model.buffers.size(); ++b) {
    std::ostringstream line;
    line << "module buffer '" << model.buffer_names[b] << "' " << model.buffers[b].sizes() << ' '
         << c10::toString(model.buffers[b].scalar_type());
    lines.push_back(line.str());
  }
  return lines;
}

}  // namespace zerosched::detail
