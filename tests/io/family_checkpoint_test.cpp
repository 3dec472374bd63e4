// What the optimizers with momentum have besides z, x and v is brought back, too; and checkpoints from before there were
// options for it.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/adamw_schedulefree_plus.h>
#include <zerosched/gpa_adamw.h>

#include <nlohmann/json.hpp>

#include <fstream>
#include <memory>

namespace zerosched::testing {
namespace {

void train(const NamedParameters& parameters, ShardedOptimizer& optimizer, int64_t first, int64_t end) {
  for (int64_t step = first; step < end; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    // A closure's loss is for those that take one.
    optimizer.step([&] { return at::full({}, 1.0 / static_cast<double>(step + 1 + world()->rank())); });
  }
}

State state_of(ShardedOptimizer& optimizer) {
  State state = full_state(optimizer);
  state["m"] = optimizer.full_state("m");
  return state;
}

template <typename Optimizer, typename Options>
void expect_resumes(const Options& options) {
  SCOPED_TRACE(typeid(Optimizer).name());
  const Scratch scratch;
  const NamedParameters parameters = make_parameters(odd_shapes());
  Optimizer optimizer({ParameterGroup(parameters)}, world(), options, buckets_of(300));
  train(parameters, optimizer, 0, 3);
  optimizer.save_checkpoint(scratch / "step_3");
  const State saved = state_of(optimizer);

  const NamedParameters others = make_parameters(odd_shapes());
  Options other_options = options;
  other_options.set_lr(0.5);
  Optimizer other({ParameterGroup(others)}, world(), other_options, buckets_of(300));
  train(others, other, 50, 51);
  other.load_checkpoint(scratch / "step_3");
  expect_same_bits(state_of(other), saved);
  train(parameters, optimizer, 3, 6);
  train(others, other, 3, 6);
  expect_same_bits(state_of(other), state_of(optimizer));
}

TEST(FamilyCheckpoint, BringsEverythingBack) {
  expect_resumes<AdamWScheduleFree>(AdamWScheduleFreeOptions(0.01).inner_momentum(0.9).refinement(20));
  expect_resumes<GPAAdamW>(GPAAdamWOptions(0.01).warmup_steps(5));
  expect_resumes<AdamWScheduleFreePlus>(
      AdamWScheduleFreePlusOptions().polyak_beta(0.9).sf_beta1_anneal_steps(5).c_warmup(4));
}

TEST(FamilyCheckpoint, OneWithInnerMomentumDoesNotFitAnOptimizerWithout) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{30}});
  AdamWScheduleFree with(
      {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions().inner_momentum(0.9));
  train(parameters, with, 0, 1);
  with.save_checkpoint(scratch / "with");
  const NamedParameters others = make_parameters({{30}});
  AdamWScheduleFree without({ParameterGroup(others)}, world());
  expect_error([&] { without.load_checkpoint(scratch / "with"); },
      {"inner_momentum", "when the optimizer was constructed"});
  without.save_checkpoint(scratch / "without");
  expect_error([&] { with.load_checkpoint(scratch / "without"); },
      {"its state is v, x, z, and that of this AdamWScheduleFree is m, v, x, z", "construct"});
}

TEST(FamilyCheckpoint, OneFromBeforeThereWereItsOptionsLoads) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{30}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(0.01));
  train(parameters, optimizer, 0, 2);
  optimizer.save_checkpoint(scratch / "here");
  const State saved = full_state(optimizer);
  on_rank_0([&] {
    const std::string path = scratch / "here/manifest.json";
    nlohmann::ordered_json manifest;
    std::ifstream(path) >> manifest;
    for (auto& group : manifest["groups"]) {
      EXPECT_EQ(group.erase("gradient_l1"), 1);
      auto& options = group["options"];
      ASSERT_EQ(options.size(), 10);
      options.erase(9);  // inner_momentum
      options.erase(8);  // refinement
    }
    std::ofstream(path) << manifest.dump(1) << '\n';
  });
  const NamedParameters others = make_parameters({{30}});
  AdamWScheduleFree other({ParameterGroup(others)}, world(), AdamWScheduleFreeOptions(1.0).refinement(50));
  other.load_checkpoint(scratch / "here");
  expect_same_bits(full_state(other), saved);
  const auto& options = static_cast<AdamWScheduleFreeOptions&>(other.param_groups()[0].options());
  EXPECT_EQ(options.lr(), 0.01);
  EXPECT_EQ(options.refinement(), 0);
}

}  // namespace
}  // namespace zerosched::testing
