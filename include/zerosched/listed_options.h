#pragma once

#include <zerosched/export.h>

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

namespace zerosched {

/// Which numbers an option may be.
enum class Range {
  finite,        ///< any but infinities and NaN
  not_negative,  ///< finite, 0 or more
  fraction,      ///< [0, 1], a weight in a mean
  decay,         ///< [0, 1), as what decays at a rate of 1 never forgets
};

/// One option of an optimizer.
struct Option {
  const char* name;                              ///< in messages and checkpoints
  std::variant<double*, int64_t*, bool*> value;  ///< where it lies
  Range range = Range::finite;                   ///< of flags nothing is asked
  std::optional<double> if_absent =
      std::nullopt;  ///< in checkpoints from before it was there; nullopt: it is in all
};

/// Base of the options of all optimizers: one list, of which checks, comparison across ranks, checkpoints and LibTorch's
/// get_lr() and set_lr() are made. Everything here is local.
class ZEROSCHED_EXPORT ListedOptions : public torch::optim::OptimizerOptions {
 public:
  /// All options, in the order of checkpoints; "lr" is one.
  virtual std::vector<Option> list() = 0;
  /// Those names and values, flags as 0 and 1.
  std::vector<std::pair<std::string, double>> values() const;
  /// Sets the option of that name, to 0 or else for a flag. Whether there is one.
  bool set(const std::string& name, double value);
  /// Throws an Error, naming the option, if one is out of its range or some do not go together.
  void check() const;
  /// The learning rate, as LibTorch's schedulers ask for it.
  double get_lr() const override;
  /// And as they set it.
  void set_lr(double lr) override;

 protected:
  /// Throws where options that are in range do not go together.
  virtual void check_together() const {}
};

/// ListedOptions that can be copied, as LibTorch's OptimizerCloneableOptions.
template <typename Derived>
class OptionsOf : public ListedOptions {
 public:
  typedef std::tuple<double, double> betas_t;  ///< as in torch::optim

 private:
  std::unique_ptr<torch::optim::OptimizerOptions> clone() const override {
    return std::make_unique<Derived>(static_cast<const Derived&>(*this));
  }
};

}  // namespace zerosched
