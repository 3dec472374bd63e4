// Several optimizers in one folder: as one checkpoint, and beside each other without a loss.
#include "engine/toy.h"
#include "engine/warnings.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/adamw_schedulefree_paper.h>
#include <zerosched/checkpoint.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include <unistd.h>

namespace zerosched::testing {
namespace {

namespace fs = std::filesystem;

void train(const NamedParameters& parameters, ShardedOptimizer& optimizer, int64_t first, int64_t end) {
  for (int64_t step = first; step < end; ++step) {
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
  }
}

/// A generator and its critic.
struct Gan {
  Gan()
      : generator({ParameterGroup(g)}, world(), AdamWScheduleFreeOptions(0.01), buckets_of(300)),
        critic({ParameterGroup(c)}, world(), AdamWScheduleFreeOptions(0.1)) {}
  void train(int64_t first, int64_t end) {
    testing::train(g, generator, first, end);
    testing::train(c, critic, first, end);
  }
  std::vector<ShardedOptimizer*> both() { return {&generator, &critic}; }

  NamedParameters g = make_parameters(odd_shapes());
  NamedParameters c = make_parameters({{9}, {20, 3}});  // of the names that the generator's have, too
  AdamWScheduleFree generator;
  AdamWScheduleFreePaper critic;
};

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

using Names = std::set<std::string>;

TEST(Several, AreOneCheckpoint) {
  const Scratch scratch;
  Gan gan;
  gan.train(0, 3);
  CheckpointExtra extra;
  extra.shared.json["step"] = "3";
  extra.local.tensors["rank"] = at::full({1}, world()->rank());
  save_checkpoint(scratch / "step_3", gan.both(), extra);
  const State generator = full_state(gan.generator), critic = full_state(gan.critic);
  EXPECT_EQ(names_in(scratch / "step_3"), Names({"manifest.json", "optimizer_0", "optimizer_1"}));
  EXPECT_EQ(names_in(scratch.path()), Names({"latest", "step_3"}));
  EXPECT_EQ(latest_checkpoint(scratch.path()), scratch / "step_3");

  Gan other;
  other.train(7, 8);
  const CheckpointExtra loaded = load_checkpoint(scratch / "step_3", {&other.generator, &other.critic});
  expect_same_bits(full_state(other.generator), generator);
  expect_same_bits(full_state(other.critic), critic);
  EXPECT_EQ(loaded.shared.json.at("step"), "3");
  EXPECT_EQ(loaded.local.tensors.at("rank").item<int64_t>(), world()->rank());
  EXPECT_EQ(loaded.world_size, world()->size());
  EXPECT_EQ(other.critic.param_groups()[0].options().get_lr(), 0.1);
  gan.train(3, 5);
  other.train(3, 5);
  expect_same_bits(full_state(other.generator), full_state(gan.generator));
  expect_same_bits(full_state(other.critic), full_state(gan.critic));
}

TEST(Several, OneOfThemAlone) {
  const Scratch scratch;
  Gan gan;
  gan.train(0, 3);
  CheckpointExtra extra;
  extra.shared.json["step"] = "3";
  save_checkpoint(scratch / "both", gan.both(), extra);
  const State critic = full_state(gan.critic);
  gan.train(3, 4);
  const State later = full_state(gan.generator);
  EXPECT_EQ(load_checkpoint(scratch / "both", {nullptr, &gan.critic}).shared.json.at("step"), "3");
  expect_same_bits(full_state(gan.critic), critic);
  expect_same_bits(full_state(gan.generator), later);
  gan.critic.load_checkpoint(scratch / "both/optimizer_1");
  expect_same_bits(full_state(gan.critic), critic);
  expect_error([&] { gan.critic.load_checkpoint(scratch / "both"); },
      {"both", "is of 2 optimizers (AdamWScheduleFree, AdamWScheduleFreePaper), and 1 is to load it",
          "nullptr", "both/optimizer_0"});
  gan.critic.save_checkpoint(scratch / "one");
  expect_error([&] { load_checkpoint(scratch / "one", gan.both()); }, {"one", "is of one optimizer, and 2"});
  // A list of one is that one.
  load_checkpoint(scratch / "one", {&gan.critic});
  save_checkpoint(scratch / "list_of_one", {&gan.critic});
  gan.critic.load_checkpoint(scratch / "list_of_one");
}

TEST(Several, NothingChangesIfOneDoesNotFit) {
  const Scratch scratch;
  Gan gan;
  gan.train(0, 2);
  save_checkpoint(scratch / "both", gan.both());
  gan.train(2, 3);
  const State generator = full_state(gan.generator), critic = full_state(gan.critic);
  on_rank_0([&] { fs::resize_file(scratch / "both/optimizer_1/rank_00000.safetensors", 100); });
  expect_error(
      [&] { load_checkpoint(scratch / "both", gan.both()); }, {"optimizer_1/rank_00000.safetensors"});
  expect_error(
      [&] {
        load_checkpoint(scratch / "both", {&gan.critic, &gan.generator});
      },
      {"optimizer_0", "AdamWScheduleFree, and this optimizer is AdamWScheduleFreePaper"});
  expect_same_bits(full_state(gan.generator), generator);
  expect_same_bits(full_state(gan.critic), critic);
  world_barrier();
  on_rank_0([&] { fs::remove(scratch / "both/optimizer_1/manifest.json"); });
  EXPECT_EQ(latest_checkpoint(scratch.path()), "");
}

TEST(Several, RefusesImpossibleLists) {
  const Scratch scratch;
  Gan gan;
  expect_error([&] { save_checkpoint(scratch / "x", {}); }, {"save_checkpoint", "no optimizer"});
  expect_error(
      [&] {
        save_checkpoint(scratch / "x", {&gan.critic, nullptr});
      },
      {"optimizer 1 is a null pointer"});
  expect_error([&] { save_checkpoint(scratch / "x", {&gan.critic, &gan.critic}); }, {"0 and 1 are the same"});
  expect_error([&] { load_checkpoint(scratch / "x", {nullptr}); }, {"load_checkpoint", "no optimizer"});
  if (world()->size() > 1) {
    AdamWScheduleFree alone({ParameterGroup(make_parameters({{3}}))}, self_communicator());
    expect_error(
        [&] {
          save_checkpoint(scratch / "x", {&gan.critic, &alone});
        },
        {"of the same ranks", "of 1"});
  }
  EXPECT_EQ(names_in(scratch.path()), Names());
}

TEST(Several, KeepTheLastOfThemTogether) {
  const Scratch scratch;
  Gan gan;
  for (int step = 1; step <= 4; ++step) {
    save_checkpoint(
        scratch / ("step_" + std::to_string(step)), gan.both(), {}, CheckpointOptions().keep_last(2));
  }
  EXPECT_EQ(names_in(scratch.path()), Names({"latest", "step_3", "step_4"}));
  world_barrier();
  save_checkpoint(scratch / "step_4", gan.both());  // one takes another's place
  EXPECT_EQ(names_in(scratch.path()), Names({"latest", "step_3", "step_4"}));
}

// Two of one class over parameters of the same names, as the critics of a soft actor-critic.
struct Twins {
  Twins() : first({ParameterGroup(a)}, world()), second({ParameterGroup(b)}, world()) {}
  NamedParameters a = make_parameters({{9}});
  NamedParameters b = make_parameters({{9}});
  AdamWScheduleFree first, second;
};

TEST(BesideEachOther, NobodyDeletesAnothers) {
  const Scratch scratch;
  Twins twins;
  const auto keep = CheckpointOptions().keep_last(1);
  twins.first.save_checkpoint(scratch / "best");
  for (const char* step : {"1", "2"}) {
    twins.first.save_checkpoint(scratch / (std::string("q1_") + step), {}, keep);
    twins.second.save_checkpoint(scratch / (std::string("q2_") + step), {}, keep);
    twins.second.save_checkpoint(scratch / (std::string("1") + step), {}, keep);
    twins.first.save_checkpoint(scratch / (std::string("2") + step), {}, keep);
  }
  EXPECT_EQ(names_in(scratch.path()), Names({"best", "latest", "q1_2", "q2_2", "12", "22"}));
  world_barrier();
  // What a training has loaded it goes on with, and a later job's optimizer does.
  {
    Twins later;
    later.first.load_checkpoint(scratch / "q1_2");
    later.first.save_checkpoint(scratch / "q1_3", {}, keep);
    later.second.save_checkpoint(scratch / "q1_4", {}, keep);
  }
  EXPECT_EQ(names_in(scratch.path()), Names({"best", "latest", "q1_3", "q1_4", "q2_2", "12", "22"}));
}

TEST(BesideEachOther, NobodyReplacesAnothers) {
  const Scratch scratch;
  Twins twins;
  twins.first.save_checkpoint(scratch / "last");
  const auto replace = [&] { twins.second.save_checkpoint(scratch / "last"); };
  expect_error(replace, {"last: is the checkpoint of another optimizer of this job, AdamWScheduleFree",
                            "zerosched::save_checkpoint(dir, {&first, &second})"});
  EXPECT_EQ(names_in(scratch.path()), Names({"last", "latest"}));
  twins.first.save_checkpoint(scratch / "last");
  world_barrier();
  {
    Twins ended;
    ended.first.save_checkpoint(scratch / "ended");
  }
  twins.second.save_checkpoint(scratch / "ended");  // nobody trains what was there
}

/// Says in a manifest that the process that has started this one has saved it.
void give_to_parent(const std::string& manifest) {
  const std::string parent = std::to_string(::getppid());
  std::string status, text;
  std::getline(std::ifstream("/proc/" + parent + "/stat"), status, '\0');
  std::istringstream fields(status.substr(status.rfind(')') + 1));
  std::string started;
  for (int field = 3; field <= 22; ++field) fields >> started;  // proc(5)
  std::getline(std::ifstream(manifest), text, '\0');
  for (const auto& [name, value] :
      std::map<std::string, std::string>{{"\"pid\": ", parent}, {"\"started\": ", started}}) {
    const size_t begin = text.find(name) + name.size();
    text.replace(begin, text.find_first_of(",\n}", begin) - begin, value);
  }
  std::ofstream(manifest) << text;
}

// Two jobs that go on from one checkpoint, each in its way.
TEST(BesideEachOther, NobodyDeletesThatOfAJobThatRuns) {
  const Scratch scratch;
  Twins twins;
  const auto keep = CheckpointOptions().keep_last(1);
  for (const char* name : {"step_1", "step_2", "step_3"}) twins.first.save_checkpoint(scratch / name);
  on_rank_0([&] { give_to_parent(scratch / "step_2/manifest.json"); });
  twins.first.save_checkpoint(scratch / "step_4", {}, keep);
  EXPECT_EQ(names_in(scratch.path()), Names({"latest", "step_2", "step_4"}));
}

TEST(BesideEachOther, WhatOthersKeepInAFolderStays) {
  const Scratch scratch;
  Twins twins;
  const auto keep = CheckpointOptions().keep_last(1);
  twins.first.save_checkpoint(scratch / "step_1", {}, keep);
  on_rank_0([&] { std::ofstream(scratch / "step_1/rank_of_models.txt") << "mine"; });
  twins.first.save_checkpoint(scratch / "step_2", {}, keep);
  twins.first.save_checkpoint(scratch / "step_3", {}, keep);
  EXPECT_EQ(names_in(scratch.path()), Names({"latest", "step_1", "step_3"}));
  EXPECT_TRUE(fs::exists(scratch / "step_1/rank_of_models.txt"));
  expect_error([&] { twins.first.save_checkpoint(scratch / "step_1"); }, {"step_1", "is there already"});
}

TEST(BesideEachOther, WhatCannotBeDeletedIsWarnedOf) {
  const Scratch scratch;
  Twins twins;
  const auto keep = CheckpointOptions().keep_last(1);
  twins.first.save_checkpoint(scratch / "step_1");
  on_rank_0([&] {
    fs::create_directories(scratch / ".step_1.deleted");
    std::ofstream(scratch / ".step_1.deleted/notes") << "mine";
  });
  const Warnings warnings;
  twins.first.save_checkpoint(scratch / "step_2", {}, keep);
  EXPECT_EQ(warnings.with("step_1: this older checkpoint could not be deleted").size(),
      world()->rank() == 0 ? 1U : 0U);
  EXPECT_TRUE(fs::exists(scratch / "step_1/manifest.json"));
}

TEST(Latest, IsTheNewestWhateverTheLinkSays) {
  const Scratch scratch;
  Twins twins;
  twins.first.save_checkpoint(scratch / "step_1");
  twins.first.save_checkpoint(scratch / "step_2");
  // As a job leaves it that was killed before it could say so.
  on_rank_0([&] {
    fs::remove(scratch / "latest");
    fs::create_symlink("step_1", scratch / "latest");
  });
  EXPECT_EQ(latest_checkpoint(scratch.path()), scratch / "step_2");
  EXPECT_EQ(latest_checkpoint(scratch.path(), *world()), scratch / "step_2");
  world_barrier();
  // And one killed before it had its name.
  on_rank_0([&] { fs::rename(scratch / "step_2", scratch / ".step_2.partial"); });
  EXPECT_EQ(latest_checkpoint(scratch.path()), scratch / ".step_2.partial");
  twins.first.load_checkpoint(latest_checkpoint(scratch.path(), *world()));
  twins.first.load_checkpoint(scratch / "step_2");
  twins.first.save_checkpoint(scratch / "step_3");
  EXPECT_EQ(names_in(scratch.path()), Names({"latest", "step_1", "step_2", "step_3"}));
}

TEST(Latest, OfAClockThatGoesBack) {
  const Scratch scratch;
  Twins twins;
  twins.first.save_checkpoint(scratch / "step_1");
  on_rank_0([&] {  // of a host whose clock is a century ahead
    const std::string path = scratch / "step_1/manifest.json";
    std::string text;
    std::getline(std::ifstream(path), text, '\0');
    const size_t digits = text.find("\"created\": ") + 11;
    text.replace(digits, text.find(',', digits) - digits, "5000000000000000000");
    std::ofstream(path) << text;
  });
  twins.first.save_checkpoint(scratch / "step_2");
  EXPECT_EQ(latest_checkpoint(scratch.path(), *world()), scratch / "step_2");
}

TEST(Latest, IsRankZerosOnAllRanks) {
  const Scratch scratch;
  EXPECT_EQ(latest_checkpoint(scratch.path(), *world()), "");
  if (world()->size() == 1) return;
  expect_error([&] { latest_checkpoint(scratch / std::to_string(world()->rank()), *world()); },
      {"latest_checkpoint", "/0", "/1"});
}

TEST(Latest, ThatCannotBeReadIsAnErrorOnAllRanks) {
  const Scratch scratch;
  Twins twins;
  twins.first.save_checkpoint(scratch / "step_1");
  on_rank_0([&] { make_unreadable(scratch / "step_1/manifest.json"); });
  expect_error([&] { latest_checkpoint(scratch.path(), *world()); }, {"rank 0", "step_1/manifest.json"});
  EXPECT_THROW(latest_checkpoint(scratch.path()), CheckpointError);
}

TEST(Latest, MayBeAFile) {
  const Scratch scratch;
  Twins twins;
  twins.first.save_checkpoint(scratch / "step_1");
  on_rank_0([&] {
    fs::remove(scratch / "latest");
    std::ofstream(scratch / "latest") << "step_1\n";
  });
  twins.first.load_checkpoint(scratch / "latest");
  twins.first.save_checkpoint(scratch / "step_2");  // a link again, where there are links
  twins.first.load_checkpoint(scratch / "latest");
  world_barrier();
  on_rank_0([&] {
    fs::remove(scratch / "latest");
    std::ofstream(scratch / "latest") << "somebody's notes";
  });
  expect_error(
      [&] { twins.first.save_checkpoint(scratch / "step_3"); }, {"latest", "in the way of the link"});
}

}  // namespace
}  // namespace zerosched::testing
