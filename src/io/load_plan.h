#pragma once

#include "engine/optimizer_state.h"
#include "io/manifest.h"
#include "io/safetensors.h"
#include "io/saved_state.h"

#include <map>
#include <string>
#include <vector>

namespace zerosched::detail {

/// What of a checkpoint goes where in an optimizer.
struct LoadPlan {
  enum class From {
    nowhere,    ///< stays as it is
    state,      ///< of a trained parameter: all of its state
    weights,    ///< of a trained parameter: x alone
    unsharded,  ///< a tensor in module.safetensors, by its name there
  };
  struct Source {
    From from = From::nowhere;
    std::string name;
  };
  struct PlannedGroup {
    /// Those that are not taken from the checkpoint start anew: z becomes x, and the rest 0. Else the state continues, and
    /// `scalars` are the checkpoint's.
    bool starts_anew = false;
    bool stays = false;  ///< nothing of it is in the checkpoint
    GroupState scalars;
  };

  std::vector<Source> parameters;  ///< by parameter of the optimizer
  std::vector<Source> unsharded;   ///< by tensor, as tensor_name::unsharded() has them
  std::vector<PlannedGroup> groups;
  bool takes_options = true;
  std::map<std::string, std::string> taken, not_taken;  ///< of a partial load: what, and why not, by name
};

/// What a plan is made of.
struct LoadSubject {
  const std::string& dir;
  const SavedState& saved;
  const std::vector<SafetensorsEntry>& unsharded;  ///< of module.safetensors
  const OptimizerState& state;
};

/// All of it to an optimizer of the same class, groups, names and shapes. Throws std::runtime_error at the first thing that
/// does not fit, naming it.
LoadPlan plan_whole(const LoadSubject& subject);

/// Throws if the state of an optimizer of that class is of other tensors there: options decide that, and are to be looked at
/// before, since they say more.
void check_state_tensors(const LoadSubject& subject);

/// What fits, by name. Throws if that is nothing.
LoadPlan plan_partial(const LoadSubject& subject);

}  // namespace zerosched::detail
