#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

namespace zerosched::detail {

/// An optimizer's claim to the parameters that it trains, kept in a registry of the process: two optimizers that
/// train the same parameter would undo each other's steps.
///
/// An optimizer over exactly the parameters of one that still lives replaces it, because that is what
/// `optimizer = std::make_unique<...>(...)` does. Any other overlap is an error.
class ParameterClaim {
 public:
  /// Throws if an optimizer that these parameters cannot replace trains one of them, with both of its names.
  /// Local; changes nothing.
  static void check(const std::vector<at::Tensor>& parameters, const std::vector<std::string>& names);

  /// What others may ask of an optimizer.
  struct Owner {
    std::function<void()> replaced;  ///< called when another claim replaces this one
    std::function<void()> settle;    ///< what settle() has to call
    std::function<bool()> is_at_x;
  };

  /// After check(). Calls `replaced` of the claim that this one replaces, if there is one. The parameters live as long as
  /// this at least.
  ParameterClaim(
      const std::vector<at::Tensor>& parameters, const std::vector<std::string>& names, Owner owner);
  ~ParameterClaim();
  ParameterClaim(const ParameterClaim&) = delete;
  ParameterClaim& operator=(const ParameterClaim&) = delete;

  /// Throws if another optimizer has replaced this one. Local.
  void check_not_replaced() const;

  /// Has every optimizer that trains one of `tensors` wait until its parameters have been gathered. Throws what that
  /// throws. Local.
  static void settle(const std::vector<at::Tensor>& tensors);

  /// Those of `tensors` that no optimizer trains.
  static std::vector<at::Tensor> unclaimed(const std::vector<at::Tensor>& tensors);
  /// Whether some optimizer trains the tensor.
  static bool is_claimed(const at::Tensor& tensor);
  /// Whether the tensor has the values that are evaluated: false if an optimizer trains it and has it at a y that is another.
  /// After settle().
  static bool is_at_x(const at::Tensor& tensor);

 private:
  size_t count_ = 0;  ///< of parameters
  Owner owner_;
  bool is_replaced_ = false;
};

}  // namespace zerosched::detail
