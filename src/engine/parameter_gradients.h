#pragma once

#include "engine/executor.h"
#include "layout/layout.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace zerosched::detail {

/// What a parameter's gradient is: what is in .grad, in whatever form backward left it, and what no_sync() passes have
/// accumulated apart from it. Not thread-safe.
class ParameterGradients {
 public:
  /// A gradient tensor as it was at some time: whether somebody has put another in its place, or written it, shows.
  struct Seen {
    const void* identity = nullptr;
    uint32_t version = 0;
    bool operator==(const Seen& other) const {
      return identity == other.identity && version == other.version;
    }
  };

  /// `consume`: taking a gradient leaves .grad undefined; with `guard`, throwing when it is read. `layout` and
  /// `executor` must outlive this.
  ParameterGradients(std::vector<at::Tensor> parameters, std::vector<std::string> names, const Layout& layout,
      Executor& executor, bool consume, bool guard);

  size_t count() const { return parameters_.size(); }
  const std::vector<at::Tensor>& parameters() const { return parameters_; }
  const at::Tensor& parameter(int64_t index) const { return parameters_[static_cast<size_t>(index)]; }
  const std::string& name(int64_t index) const { return names_[static_cast<size_t>(index)]; }
  bool consumes() const { return consume_; }

  /// Whether there is one that take() would give.
  bool has(int64_t index) const;
  /// Whether it is in .grad, and not only accumulated.
  bool is_in_grad(int64_t index) const;
  /// .grad plus what was accumulated, flat, in the parameter's memory order; undefined if there is neither.
  at::Tensor take(int64_t index);
  /// .grad in the same form, without taking it.
  at::Tensor look(int64_t index) const;
  /// After a backward pass under no_sync(). float32 gradients accumulate in .grad, as LibTorch does by itself; 16-bit
  /// ones would lose small terms there, and are added up in float32.
  void accumulate(int64_t index);
  /// Forgets what was accumulated, .grad too where taking would have left it undefined or `set_to_none` says so; else
  /// it is zeroed.
  void drop(bool set_to_none);

  /// .grad as it is now.
  Seen see(int64_t index) const;
  /// Throws if .grad is not as it was when it was seen; default-made `seen`: if something was put where a gradient was
  /// taken from.
  void check_untouched(int64_t index, const Seen& seen) const;
  /// Puts what throws when it is read in place of a gradient that was taken, where that was asked for.
  void guard(int64_t index);
  void drop_guards();

  /// Per parameter: whether a gradient of it was ever taken.
  const std::vector<bool>& used() const { return used_; }

 private:
  at::Tensor in_memory_order(const at::Tensor& gradient, int64_t index) const;
  at::Tensor converted(const at::Tensor& flat, at::ScalarType dtype) const;

  std::vector<at::Tensor> parameters_;
  std::vector<std::string> names_;
  const Layout& layout_;
  Executor& executor_;
  const bool consume_, guard_;
  std::vector<at::Tensor> accumulated_;  ///< float32, flat; of 16-bit parameters only
  std::vector<at::Tensor> guards_;       ///< made when first needed
  std::vector<bool> used_;
};

}  // namespace zerosched::detail
