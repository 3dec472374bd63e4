#include "io/optimizer_load.h"

#include "comm/agree.h"
#include "engine/equal_on_ranks.h"
#include "engine/parameter_claim.h"
#include "io/tensor_name.h"
#include "kernels/kernels.h"

#include <ATen/ops/empty_strided.h>

#include <map>
#include <set>
#include <stdexcept>

namespace zerosched::detail {

namespace {

using From = LoadPlan::From;

// The elements of a dense tensor in the order in which they lie in memory.
at::Tensor in_memory_order(const at::Tensor& dense) { return dense.as_strided({dense.numel()}, {1}); }

void verify_tensors(
    const TensorFile& file, const ManifestFile& listed, const std::set<std::string>& tensors) {
  file.check_byte_count(listed.byte_count);
  for (const std::string& tensor : tensors) {
    const auto checksum = listed.checksums.find(tensor);
    if (checksum == listed.checksums.end())
      throw std::runtime_error(file.path() + ": the manifest has no checksum of '" + tensor + "'");
    file.verify(tensor, checksum->second);
  }
}

}  // namespace

void OptimizerLoad::prepare(const LoadOptions& how) {
  const std::string why_not = optimizer().why_not_replaceable();
  if (!why_not.empty()) throw std::runtime_error("load_checkpoint: " + why_not);
  saved_.emplace(manifest_, dir_);
  const TensorFile module(dir_ + '/' + kModuleFileName);
  const LoadSubject subject{dir_, *saved_, module.entries(), state()};
  plan_ = how.partial() ? plan_partial(subject) : plan_whole(subject);
  if (plan_.takes_options) {
    check_options();
    check_state_tensors(subject);
  }
  unsharded_ = tensor_name::unsharded(state().model());
  shards_.emplace(*saved_);
  whole_.emplace(*saved_);
  want_shards();
  const bool is_first = optimizer().communicator()->rank() == 0;
  if (is_first) want_unsharded();
  shards_->verify();
  whole_->verify();
  verify_unsharded(is_first);
}

void OptimizerLoad::check_options() const {
  const Algorithm& algorithm = state().algorithm();
  for (size_t g = 0; g < optimizer_.options.size(); ++g) {
    const auto with_saved_values = optimizer_.options[g]->clone();
    try {
      algorithm.assign(*with_saved_values, manifest_.groups[g].options);
      algorithm.check(*with_saved_values);
    } catch (const std::exception& error) {
      throw std::runtime_error(
          dir_ + ": the options of group " + std::to_string(g) + ": " + message_of(error));
    }
  }
}

void OptimizerLoad::for_own_pieces(
    const std::function<void(const Bucket&, const Piece&, const ShardState&)>& function) const {
  const Layout& layout = state().layout();
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    for (const Piece& piece : layout.buckets[b].pieces) {
      if (piece.slice == optimizer().communicator()->rank())
        function(layout.buckets[b], piece, state().shards()[b]);
    }
  }
}

void OptimizerLoad::want_shards() {
  for_own_pieces([this](const Bucket& bucket, const Piece& piece, const ShardState& shard) {
    want_piece(bucket, piece, shard);
  });
}

void OptimizerLoad::want_piece(const Bucket& bucket, const Piece& piece, const ShardState& shard) {
  const auto p = static_cast<size_t>(bucket.slot_of(piece).parameter);
  const LoadPlan::Source& source = plan_.parameters[p];
  const auto& tensors = state().algorithm().state();
  for (size_t t = 0; t < tensors.size(); ++t) {
    const at::Tensor to = shard[t].narrow(0, piece.slice_begin, piece.numel);
    const bool at_parameters = tensors[t].starts_at_parameters;
    if (source.from == From::state) {
      const bool is_there = saved_->tensors().count(tensors[t].name) > 0;
      shards_->want(is_there ? tensors[t].name : "x", source.name, piece.slot_begin, to);
    } else if (source.from == From::weights && at_parameters) {
      shards_->want("x", source.name, piece.slot_begin, to);
    } else if (source.from == From::unsharded && at_parameters) {
      unsharded_shards_.push_back({source.name, &state().model().specs[p], piece.slot_begin, to});
    }
  }
}

// What of a trained parameter becomes a frozen one is read as a whole.
void OptimizerLoad::want_unsharded() {
  weights_.resize(unsharded_.size());
  std::map<std::string, const ParameterSpec*> saved;
  for (const ParameterSpec& parameter : manifest_.parameters) saved[parameter.name] = &parameter;
  for (size_t i = 0; i < unsharded_.size(); ++i) {
    if (plan_.unsharded[i].from != From::weights) continue;
    const ParameterSpec& spec = *saved.at(plan_.unsharded[i].name);
    weights_[i] = at::empty_strided(spec.sizes, spec.strides, kernels::state_dtype(spec.dtype));
    whole_->want("x", spec.name, 0, in_memory_order(weights_[i]));
  }
}

void OptimizerLoad::verify_unsharded(bool all) const {
  std::set<std::string> tensors;
  for (const UnshardedShard& shard : unsharded_shards_) tensors.insert(shard.name);
  for (const LoadPlan::Source& source : plan_.unsharded) {
    if (all && source.from == From::unsharded) tensors.insert(source.name);
  }
  if (!all && tensors.empty()) return;
  verify_tensors(TensorFile(dir_ + '/' + kModuleFileName), manifest_.files.at(kModuleFileName), tensors);
}

size_t OptimizerLoad::index_of_x() const {
  const auto& tensors = state().algorithm().state();
  size_t index = 0;
  while (tensors[index].name != "x") ++index;
  return index;
}

// z becomes x, the rest 0.
void OptimizerLoad::start_anew(const Bucket& bucket, const Piece& piece, const ShardState& shard) {
  if (!plan_.groups[static_cast<size_t>(bucket.group)].starts_anew) return;
  const auto& tensors = state().algorithm().state();
  const at::Tensor x = shard[index_of_x()].narrow(0, piece.slice_begin, piece.numel);
  for (size_t t = 0; t < tensors.size(); ++t) {
    const at::Tensor to = shard[t].narrow(0, piece.slice_begin, piece.numel);
    if (!tensors[t].starts_at_parameters) {
      state().executor().fill(to, 0);
    } else if (tensors[t].name != "x") {
      state().executor().assign(to, x);
    }
  }
}

void OptimizerLoad::read() {
  Executor& executor = state().executor();
  const auto use = optimizer().enter();
  shards_->read(executor);
  const TensorFile module(dir_ + '/' + kModuleFileName);
  std::map<std::string, std::vector<const UnshardedShard*>> by_name;
  for (const UnshardedShard& shard : unsharded_shards_) by_name[shard.name].push_back(&shard);
  for (const auto& [name, shards] : by_name) {
    const ParameterSpec& spec = *shards.front()->parameter;
    const at::Tensor value = at::empty_strided(spec.sizes, spec.strides, kernels::state_dtype(spec.dtype));
    value.copy_(module.read(name));
    for (const UnshardedShard* shard : shards) {
      executor.from_host(shard->to, in_memory_order(value).narrow(0, shard->begin, shard->to.numel()));
    }
  }
  for_own_pieces([this](const Bucket& bucket, const Piece& piece, const ShardState& shard) {
    start_anew(bucket, piece, shard);
  });
  if (optimizer().communicator()->rank() != 0) return;
  HostExecutor host;
  whole_->read(host);
  for (size_t i = 0; i < unsharded_.size(); ++i) {
    const LoadPlan::Source& source = plan_.unsharded[i];
    const at::Tensor target = unsharded_[i].second.detach();
    if (source.from == From::nowhere || ParameterClaim::is_claimed(unsharded_[i].second)) continue;
    executor.from_host(target, source.from == From::weights ? weights_[i] : module.read(source.name));
  }
}

void OptimizerLoad::settle() {
  std::vector<at::Tensor> targets;
  for (const auto& named : unsharded_) targets.push_back(named.second);
  broadcast_values(*optimizer().communicator(), ParameterClaim::unclaimed(targets));
  std::vector<GroupState> groups;
  for (const LoadPlan::PlannedGroup& group : plan_.groups) groups.push_back(group.scalars);
  const bool is_whole = plan_.takes_options;
  bool is_finite = manifest_.finite;
  if (!is_whole) {
    const auto use = optimizer().enter();
    is_finite = state().shards_are_finite();
  }
  optimizer().state_was_replaced(std::move(groups), is_finite);
  // What a partial load begins is another training.
  if (is_whole) state().series().take_over(manifest_.series);
}

void OptimizerLoad::take_options() const {
  if (!plan_.takes_options) return;
  for (size_t g = 0; g < optimizer_.options.size(); ++g) {
    state().algorithm().assign(*optimizer_.options[g], manifest_.groups[g].options);
  }
}

}  // namespace zerosched::detail
