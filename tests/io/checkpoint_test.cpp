// A checkpoint brings everything back, bit for bit, however the state is cut.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/radam_schedulefree.h>
#include <zerosched/sgd.h>

#include <sys/resource.h>

#include <filesystem>
#include <fstream>

namespace zerosched::testing {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNothing = "";

AdamWScheduleFreeOptions some_options() {
  return AdamWScheduleFreeOptions(0.01).betas({0.8, 0.95}).weight_decay(0.1).warmup_steps(4).r(0.5);
}

void train(const NamedParameters& parameters, ShardedOptimizer& optimizer, int64_t first, int64_t end) {
  for (int64_t step = first; step < end; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
  }
}

TEST(Checkpoint, BringsEverythingBackWithOtherBuckets) {
  const Scratch scratch;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const NamedParameters parameters = make_parameters(odd_shapes(), dtype);
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), some_options(), buckets_of(300));
    train(parameters, optimizer, 0, 3);
    optimizer.save_checkpoint(scratch / "step_3");
    const State saved = full_state(optimizer);

    const NamedParameters others = make_parameters(odd_shapes(), dtype);
    // Other options, which the saved ones replace.
    AdamWScheduleFree other(
        {ParameterGroup(others)}, world(), AdamWScheduleFreeOptions(1.0), buckets_of(1 << 20));
    train(others, other, 50, 51);
    other.load_checkpoint(scratch / "step_3");
    expect_same_bits(full_state(other), saved);
    expect_parameters_are(others, saved.at("y"));

    train(parameters, optimizer, 3, 6);
    train(others, other, 3, 6);
    expect_same_bits(full_state(other), full_state(optimizer));
  }
}

TEST(Checkpoint, KeepsGroupsTheirOptionsAndTheirSteps) {
  const Scratch scratch;
  const NamedParameters all = make_parameters({{9}, {20, 3}, {5}});
  const auto groups = [](const NamedParameters& parameters) {
    return std::vector<ParameterGroup>{ParameterGroup({parameters[0], parameters[2]},
                                           RAdamScheduleFreeOptions(0.02).silent_sgd_phase(false)),
        ParameterGroup({parameters[1]})};
  };
  RAdamScheduleFree optimizer(groups(all), world(), RAdamScheduleFreeOptions(0.01));
  train(all, optimizer, 0, 7);
  optimizer.param_groups()[1].options().set_lr(0.003);  // as a scheduler does
  optimizer.save_checkpoint(scratch / "here");

  const NamedParameters others = make_parameters({{9}, {20, 3}, {5}});
  RAdamScheduleFree other(groups(others), world(), RAdamScheduleFreeOptions(0.5));
  other.load_checkpoint(scratch / "here");
  EXPECT_EQ(other.param_groups()[0].options().get_lr(), 0.02);
  EXPECT_EQ(other.param_groups()[1].options().get_lr(), 0.003);
  EXPECT_FALSE(static_cast<RAdamScheduleFreeOptions&>(other.param_groups()[0].options()).silent_sgd_phase());
  train(all, optimizer, 7, 9);
  train(others, other, 7, 9);
  expect_same_bits(full_state(other), full_state(optimizer));
}

TEST(Checkpoint, LoadsInEvalModeAsX) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{50}, {6, 7}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), some_options());
  train(parameters, optimizer, 0, 3);
  {
    const auto evaluation = optimizer.eval_scope();
    optimizer.save_checkpoint(scratch / "saved_in_eval_mode");
  }
  const State saved = full_state(optimizer);
  train(parameters, optimizer, 3, 5);
  optimizer.eval();
  optimizer.load_checkpoint(scratch / "saved_in_eval_mode");
  EXPECT_FALSE(optimizer.training());
  expect_parameters_are(parameters, saved.at("x"));
  optimizer.train();
  expect_parameters_are(parameters, saved.at("y"));
  expect_same_bits(full_state(optimizer), saved);
}

TEST(Checkpoint, LoadsOverEditedAndReplacedParameters) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{50}, {6, 7}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), some_options());
  train(parameters, optimizer, 0, 3);
  optimizer.save_checkpoint(scratch / "before");
  const State saved = full_state(optimizer);
  const at::NoGradGuard no_grad;
  at::Tensor(parameters[0].second).fill_(7);
  at::Tensor(parameters[1].second).set_data(at::ones({6, 7}));
  expect_error([&] { optimizer.save_checkpoint(scratch / "after"); },
      {"save_checkpoint", "p0", "reset_from_parameters"});
  optimizer.load_checkpoint(scratch / "before");
  expect_parameters_are(parameters, saved.at("y"));
  {
    const at::AutoGradMode with_grad(true);
    train(parameters, optimizer, 3, 4);
  }
}

TEST(Checkpoint, CarriesWhatTheTrainerAdds) {
  const Scratch scratch;
  const int rank = world()->rank();
  const NamedParameters parameters = make_parameters({{50}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  CheckpointExtra extra;
  extra.shared.tensors["seen"] = at::arange(5) + rank;  // rank 0's counts
  extra.shared.json["position"] = R"({"epoch": 3, "name": "ä\"", "list": [1.5, null]})";
  extra.local.tensors["rng"] = at::full({2, 3}, rank, at::kByte);
  extra.local.tensors["scalar"] = at::full({}, 0.5, at::kDouble).t();
  extra.local.tensors["nothing"] = at::empty({0, 4}, at::kLong);
  extra.local.json["rank"] = std::to_string(rank);
  optimizer.save_checkpoint(scratch / "c", extra);

  const CheckpointExtra loaded = optimizer.load_checkpoint(scratch / "c");
  EXPECT_EQ(loaded.world_size, world()->size());
  EXPECT_TRUE(same_bits(loaded.shared.tensors.at("seen"), at::arange(5)));
  EXPECT_EQ(loaded.shared.json.at("position"), R"({"epoch":3,"list":[1.5,null],"name":"ä\""})");
  EXPECT_EQ(loaded.local.tensors.size(), 3U);
  for (const auto& [name, tensor] : extra.local.tensors)
    EXPECT_TRUE(same_bits(loaded.local.tensors.at(name), tensor)) << name;
  EXPECT_EQ(loaded.local.json.at("rank"), std::to_string(rank));

  extra.local.json["rank"] = rank + 1 == world()->size() ? "{broken" : "1";
  expect_error([&] { optimizer.save_checkpoint(scratch / "d", extra); },
      {"rank " + std::to_string(world()->size() - 1), "'rank'", "JSON"});
  extra.local.json["rank"] = "1";
  const CheckpointExtra before = extra;
  const std::string latin_1 = "caf\xe9";
  for (const bool is_tensor : {false, true}) {
    extra = before;
    if (rank + 1 == world()->size()) {
      if (is_tensor) {
        extra.local.tensors[latin_1] = at::ones(1);
      } else {
        extra.local.json[latin_1] = "1";
      }
    }
    expect_error([&] { optimizer.save_checkpoint(scratch / "d", extra); },
        {"rank " + std::to_string(world()->size() - 1), '\'' + latin_1 + '\'', "not UTF-8"});
  }
  EXPECT_FALSE(fs::exists(scratch / "d"));
}

TEST(Checkpoint, ReplacesOneOfTheSameNameAndMovesLatest) {
  const Scratch scratch;
  const std::string root = scratch / "deep/run";
  EXPECT_EQ(latest_checkpoint(root), kNothing);
  const NamedParameters parameters = make_parameters({{50}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  optimizer.save_checkpoint(root + "/a");
  EXPECT_EQ(latest_checkpoint(root), root + "/a");
  optimizer.save_checkpoint(root + "/b/");
  EXPECT_EQ(latest_checkpoint(root), root + "/b");
  train(parameters, optimizer, 0, 2);
  optimizer.save_checkpoint(root + "/a");
  EXPECT_EQ(latest_checkpoint(root), root + "/a");
  const State saved = full_state(optimizer);
  train(parameters, optimizer, 2, 3);
  optimizer.load_checkpoint(root + "/latest");
  expect_same_bits(full_state(optimizer), saved);
  // A job that was killed between naming the folder and moving the link.
  on_rank_0([&] { fs::remove(root + "/latest"); });
  EXPECT_EQ(latest_checkpoint(root), root + "/a");
  world_barrier();
  on_rank_0([&] { fs::create_symlink("gone", root + "/latest"); });
  EXPECT_EQ(latest_checkpoint(root), root + "/a");
  int names = 0;
  for (const auto& entry : fs::directory_iterator(root))
    names += entry.exists() || entry.is_symlink() ? 1 : 0;
  EXPECT_EQ(names, 3) << "a, b, latest, and nothing else";
}

TEST(Checkpoint, KeepsTheLast) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{50}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  on_rank_0([&] { fs::create_directories(scratch / "notes"); });  // not a checkpoint: not ours to delete
  for (const char* name : {"e", "d", "c", "b"}) {
    optimizer.save_checkpoint(scratch / name, {}, CheckpointOptions().keep_last(2));
  }
  for (const char* name : {"notes", "c", "b"}) EXPECT_TRUE(fs::exists(scratch / name)) << name;
  for (const char* name : {"e", "d"}) EXPECT_FALSE(fs::exists(scratch / name)) << name;
  world_barrier();
  optimizer.save_checkpoint(scratch / "a");
  for (const char* name : {"a", "b", "c"}) EXPECT_TRUE(fs::exists(scratch / name)) << name;
  expect_error([&] { optimizer.save_checkpoint(scratch / "x", {}, CheckpointOptions().keep_last(-1)); },
      {"keep_last"});
}

// AddressSanitizer keeps what is freed resident, so that it can tell of later uses.
#ifndef __SANITIZE_ADDRESS__
TEST(Checkpoint, MemoryWhileSavingAndLoadingStaysNearTheState) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{3000, 1000}, {2000, 500}, {1000000}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world(), {}, buckets_of(1 << 22));
  const auto peak_mib = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
  };
  optimizer.save_checkpoint(scratch / "warm_up");
  // From here on this rank has mapped all that it reads of other ranks' memory, which is theirs.
  optimizer.eval();
  optimizer.train();
  const auto before = peak_mib();
  optimizer.save_checkpoint(scratch / "large");
  optimizer.load_checkpoint(scratch / "large");
  // 60 MB of state over all ranks, buckets of 4 MiB, of which the largest parameter fills one of 12 MB.
  EXPECT_LE(peak_mib() - before, 16);
}
#endif

TEST(Checkpoint, RefusesWhatCannotBeSaved) {
  const Scratch scratch;
  const NamedParameters parameters = make_parameters({{50}});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  on_rank_0([&] { fs::create_directories(scratch / "a/b"); });
  for (const std::string& name :
      {std::string(), scratch / "a/b/.", scratch / "a/b/..", scratch / "latest", scratch / ".hidden"}) {
    expect_error([&] { optimizer.save_checkpoint(name); }, {"'" + name + "'", "name of its own"});
  }
  // Whatever else is at that name stays.
  expect_error([&] { optimizer.save_checkpoint(scratch / "a"); }, {"is there already", "another name"});
  EXPECT_TRUE(fs::exists(scratch / "a/b"));
  world_barrier();
  optimizer.save_checkpoint(scratch / "a/b");  // an empty folder is as good as none
  on_rank_0([&] { std::ofstream(scratch / "a/b/notes") << "mine"; });
  expect_error([&] { optimizer.save_checkpoint(scratch / "a/b"); }, {"is there already"});
  optimizer.save_checkpoint(scratch / "a/c", {}, CheckpointOptions().keep_last(1));
  EXPECT_TRUE(fs::exists(scratch / "a/b/notes"));
  world_barrier();
  on_rank_0([&] { std::ofstream(scratch / "file") << "in the way"; });
  expect_error([&] { optimizer.save_checkpoint(scratch / "file/step"); }, {"file"});
  backward(parameters, random_gradients(parameters, 0, 0));
  if (world()->size() > 1) {
    expect_error(
        [&] { optimizer.save_checkpoint(scratch / "x"); }, {"save_checkpoint", "in flight", "zero_grad"});
  }
  optimizer.zero_grad();
  if (world()->size() > 1) {
    expect_error([&] { optimizer.save_checkpoint(scratch / ("x" + std::to_string(world()->rank()))); },
        {"save_checkpoint", "x0", "x1"});
  }
  optimizer.save_checkpoint(scratch / "x");
  // The link is a part of it, and what is in its way is noticed before the checkpoint is replaced.
  const auto manifest_text = [&] {
    std::ifstream manifest(scratch / "x/manifest.json");
    return std::string(std::istreambuf_iterator<char>(manifest), {});
  };
  const std::string before = manifest_text();
  world_barrier();
  on_rank_0([&] {
    fs::remove(scratch / "latest");
    fs::create_directory(scratch / "latest");
  });
  expect_error([&] { optimizer.save_checkpoint(scratch / "x"); }, {"latest", "in the way of the link"});
  EXPECT_EQ(manifest_text(), before);
  for (const auto& entry : fs::directory_iterator(scratch.path())) {
    EXPECT_NE(entry.path().filename().string()[0], '.') << entry.path();
  }
}

}  // namespace
}  // namespace zerosched::testing
