#include "optim/algorithm.h"

#include "base/check.h"

#include <cmath>

namespace zerosched::detail {

namespace {

// A number that no int64_t has cannot be converted.
void check_is_of_its_type(const Option& option, double value) {
  constexpr double kMost = 9007199254740992;  // 2^53: all integers up to it are doubles
  const bool is_integer = std::trunc(value) == value && std::abs(value) <= kMost;
  ZEROSCHED_CHECK(!std::holds_alternative<int64_t*>(option.value) || is_integer, "option ", option.name,
      " is ", value, ", which is no integer.");
  ZEROSCHED_CHECK(!std::holds_alternative<bool*>(option.value) || value == 0 || value == 1, "option ",
      option.name, " is ", value, "; expected 0 or 1.");
}

}  // namespace

Algorithm::Algorithm(const char* name, kernels::Rule rule) : name_(name) { use_rule(rule); }

// z and x are iterates, all else are means.
void Algorithm::use_rule(kernels::Rule rule) {
  rule_ = rule;
  state_.clear();
  for (const char letter : std::string(kernels::state_of(rule)))
    state_.push_back({std::string(1, letter), letter == 'z' || letter == 'x'});
}

const ListedOptions& Algorithm::checked(const Options& options) const {
  ZEROSCHED_CHECK(takes(options), "a parameter group has options of another optimizer; ", name_, " takes ",
      name_, "Options.");
  return static_cast<const ListedOptions&>(options);
}

void Algorithm::check(const Options& options) const { checked(options).check(); }

OptionValues Algorithm::values(const Options& options) const { return checked(options).values(); }

void Algorithm::assign(Options& options, const OptionValues& values) const {
  checked(options);
  auto& listed = static_cast<ListedOptions&>(options);
  std::vector<double> given;
  size_t used = 0;
  for (const Option& option : listed.list()) {
    const bool is_there = used < values.size() && values[used].first == option.name;
    ZEROSCHED_CHECK(is_there || option.if_absent, "option ", used, " of ", name_, " is ", option.name,
        ", not ", used < values.size() ? values[used].first : "absent", ".");
    given.push_back(is_there ? values[used].second : *option.if_absent);
    check_is_of_its_type(option, given.back());
    if (is_there) ++used;
  }
  ZEROSCHED_CHECK(used == values.size(), name_, " has no option ", values[used].first, ".");
  size_t next = 0;
  for (const Option& option : listed.list()) listed.set(option.name, given[next++]);
}

// By the averages of arXiv 2405.15682, section 2, where there is a z.
Interpolation Algorithm::interpolation(Point point, const GroupState& state) const {
  if (state_.front().name != "z") return {0, 0, 0.0};
  return {1, 0, point == Point::y ? state.y_weight : 0.0};
}

}  // namespace zerosched::detail
