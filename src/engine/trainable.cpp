// Apart from what looks into modules, whose headers are slow to compile.
#include <zerosched/trainable.h>

#include <utility>

namespace zerosched {

Trainable::Trainable(std::vector<ParameterGroup> groups) : groups_(std::move(groups)) {}

Trainable::Trainable(std::initializer_list<ParameterGroup> groups) : groups_(groups) {}

Trainable Trainable::grouped(std::vector<ParameterGroup> groups) const {
  Trainable grouped = *this;
  grouped.groups_ = std::move(groups);
  // Groups over groups instead of a module: refused at construction, since no parameter is the module's.
  if (!grouped.module_) grouped.module_.emplace();
  return grouped;
}

std::optional<ModuleTensors> Trainable::module_now() const {
  return look_again_ ? look_again_() : std::nullopt;
}

}  // namespace zerosched
