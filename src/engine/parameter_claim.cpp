#include "engine/parameter_claim.h"

#include "base/check.h"

#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace zerosched::detail {
namespace {

struct Entry {
  ParameterClaim* owner = nullptr;
  std::string name;  ///< as the owner calls the parameter
};

struct ClaimRegistry {
  std::mutex mutex;  ///< guards `entries` and every claim's own state
  std::unordered_map<const c10::TensorImpl*, Entry> entries;

  const Entry* find(const at::Tensor& parameter) const {
    const auto found = entries.find(parameter.unsafeGetTensorImpl());
    return found == entries.end() ? nullptr : &found->second;
  }
};

// Never destroyed: optimizers may live until the process ends.
ClaimRegistry& registry() {
  static auto& registry = *new ClaimRegistry;
  return registry;
}

}  // namespace

void ParameterClaim::check(const std::vector<at::Tensor>& parameters, const std::vector<std::string>& names) {
  ClaimRegistry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const Entry* first = nullptr;  // of all parameters that have an owner
  size_t first_index = 0, shared = 0;
  for (size_t p = 0; p < parameters.size(); ++p) {
    const Entry* entry = all.find(parameters[p]);
    if (entry == nullptr) continue;
    if (first == nullptr) {
      first = entry;
      first_index = p;
    }
    if (entry->owner == first->owner) ++shared;
  }
  if (first == nullptr) return;
  const bool same_set = shared == parameters.size() && first->owner->count_ == parameters.size();
  ZEROSCHED_CHECK(same_set, "parameter '", names[first_index],
      "' is trained by another optimizer that still lives, which knows it as '", first->name,
      "'; two optimizers would undo each other's steps. Leave it to one of them: give the other the module "
      "and "
      "groups without it. If the other optimizer is not needed any more, destroy it before.");
}

ParameterClaim::ParameterClaim(
    const std::vector<at::Tensor>& parameters, const std::vector<std::string>& names, Owner owner)
    : count_(parameters.size()), owner_(std::move(owner)) {
  ClaimRegistry& all = registry();
  std::function<void()> tell_predecessor;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (const Entry* entry = all.find(parameters.front())) {
      entry->owner->is_replaced_ = true;
      tell_predecessor = entry->owner->owner_.replaced;
    }
    for (size_t p = 0; p < parameters.size(); ++p) {
      all.entries[parameters[p].unsafeGetTensorImpl()] = {this, names[p]};
    }
  }
  if (tell_predecessor) tell_predecessor();
}

ParameterClaim::~ParameterClaim() {
  ClaimRegistry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (is_replaced_) return;
  for (auto entry = all.entries.begin(); entry != all.entries.end();) {
    entry = entry->second.owner == this ? all.entries.erase(entry) : std::next(entry);
  }
}

void ParameterClaim::check_not_replaced() const {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  ZEROSCHED_CHECK(!is_replaced_,
      "another optimizer was constructed over the same parameters since, and has taken them over. Use that "
      "one; "
      "of this one nothing but its destruction is left.");
}

void ParameterClaim::settle(const std::vector<at::Tensor>& tensors) {
  ClaimRegistry& all = registry();
  std::map<const ParameterClaim*, std::function<void()>> owners;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (const at::Tensor& tensor : tensors) {
      if (const Entry* entry = all.find(tensor)) owners.emplace(entry->owner, entry->owner->owner_.settle);
    }
  }
  for (const auto& [owner, settle] : owners) settle();
}

std::vector<at::Tensor> ParameterClaim::unclaimed(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> free;
  for (const at::Tensor& tensor : tensors) {
    if (!is_claimed(tensor)) free.push_back(tensor);
  }
  return free;
}

bool ParameterClaim::is_claimed(const at::Tensor& tensor) {
  ClaimRegistry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return all.find(tensor) != nullptr;
}

bool ParameterClaim::is_at_x(const at::Tensor& tensor) {
  ClaimRegistry& all = registry();
  std::function<bool()> ask;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const Entry* entry = all.find(tensor);
    if (entry == nullptr) return true;
    ask = entry->owner->owner_.is_at_x;
  }
  return ask();
}

}  // namespace zerosched::detail
