#include "engine/steering.h"

#include "base/check.h"
#include "base/message_of.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <iomanip>
#include <sstream>

namespace zerosched::detail {
namespace {

// The cosine of two processors' libraries differs in the last of 53 bits; near the end of a schedule, where 1 + cos
// cancels, that is much of lr's own bits, but not of those of the lr that it started from.
constexpr double kRelative = 1e-9;
constexpr double kAbsolute = 1e-15;

bool agree_to_rounding(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) == std::isnan(b);
  if (a == b) return true;
  return std::abs(a - b) <= kRelative * std::max(std::abs(a), std::abs(b)) + kAbsolute;
}

}  // namespace

Steering::Steering(
    const Algorithm& algorithm, const std::vector<const torch::optim::OptimizerOptions*>& options)
    : algorithm_(algorithm) {
  for (size_t g = 0; g < options.size(); ++g) {
    for (const auto& [name, value] : algorithm.values(*options[g])) {
      names_.push_back(name + " of parameter group " + std::to_string(g));
    }
  }
  names_.emplace_back("the loss scale");
}

std::vector<double> Steering::values(const GroupOptions& options, double loss_scale) const {
  std::vector<double> values;
  for (const auto* group : options) {
    for (const auto& [name, value] : algorithm_.values(*group)) values.push_back(value);
  }
  values.push_back(loss_scale);
  return values;
}

void Steering::check(const GroupOptions& options) const {
  for (size_t g = 0; g < options.size(); ++g) {
    try {
      algorithm_.check(*options[g]);
    } catch (const std::exception& error) {
      ZEROSCHED_CHECK(
          false, "parameter group ", g, " cannot be stepped with its present options: ", message_of(error));
    }
  }
}

std::string Steering::difference(const std::vector<double>& own, int rank,
    const std::vector<double>& reference, int reference_rank) const {
  if (own.size() != names_.size() || reference.size() != names_.size()) return {};
  for (size_t v = 0; v < names_.size(); ++v) {
    const bool is_loss_scale = v + 1 == names_.size();
    if (is_loss_scale && (own[v] == 0 || reference[v] == 0)) continue;
    if (agree_to_rounding(own[v], reference[v])) continue;
    std::ostringstream text;
    text
        << std::setprecision(17) << names_[v] << " is " << own[v] << " on rank " << rank << " and "
        << reference[v] << " on rank " << reference_rank
        << ", but every rank updates a part of every parameter and must do so with the same. "
        << (is_loss_scale
                   ? "Give GradScalers the same options, and call them on every rank; where ranks join(), by "
                     "GradScaler::join()."
                   : "Let every rank set the same value; a scheduler that looks at a metric needs "
                     "one that is "
                     "averaged over ranks, and one that counts steps has to be set on all of them after a "
                     "join().");
    return text.str();
  }
  return {};
}

std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> Steering::with_values(
    const GroupOptions& options, const std::vector<double>& values) const {
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> copies;
  size_t next = 0;
  for (const auto* group : options) {
    auto copy = group->clone();
    OptionValues own = algorithm_.values(*copy);
    for (auto& value : own) value.second = values[next++];
    algorithm_.assign(*copy, own);
    copies.push_back(std::move(copy));
  }
  return copies;
}

}  // namespace zerosched::detail
