// A file system that fails while a checkpoint takes its place: the old one is there or the new one, and a save that says
// that it failed has replaced nothing.
#include "engine/toy.h"
#include "engine/warnings.h"
#include "io/scratch.h"
#include "io/small_checkpoint.h"
#include "io/watched_calls.h"
#include "support/world.h"

#include <zerosched/checkpoint.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <set>

namespace zerosched::testing {
namespace {

namespace fs = std::filesystem;

using Names = std::set<std::string>;

class Publish : public ::testing::Test {
 protected:
  void step(int64_t number) {
    backward(parameters, random_gradients(parameters, number, world()->rank()));
    optimizer.step();
  }

  Names names() const {
    Names found;
    for (const auto& entry : fs::directory_iterator(scratch.path())) found.insert(entry.path().filename());
    return found;
  }

  void expect_is(const std::string& name, const State& state) {
    optimizer.load_checkpoint(scratch / name);
    expect_same_bits(full_state(optimizer), state);
    world_barrier();
  }

  const Scratch scratch;
  NamedParameters parameters = make_parameters({{50}, {6, 7}});
  AdamWScheduleFree optimizer{{ParameterGroup(parameters)}, world()};
};

TEST_F(Publish, WhatFailsOnceItIsThereIsWarnedOf) {
  optimizer.save_checkpoint(scratch / "step_1");
  step(0);
  const State state = full_state(optimizer);
  const Warnings warnings;
  {
    const WatchedCalls watched([&](const std::string& call, const std::string& path) {
      const bool is_last =
          call == "fsync" && path == scratch.path() && fs::read_symlink(scratch / "latest") == "step_2";
      return is_last ? EIO : 0;
    });
    optimizer.save_checkpoint(scratch / "step_2");
  }
  EXPECT_EQ(
      warnings.with("step_2: is saved, but after a crash latest").size(), world()->rank() == 0 ? 1U : 0U);
  EXPECT_EQ(names(), Names({"latest", "step_1", "step_2"}));
  expect_is("step_2", state);
}

TEST_F(Publish, OlderOnesThatCannotBeReadAreWarnedOf) {
  for (const char* name : {"step_1", "step_2"}) optimizer.save_checkpoint(scratch / name);
  on_rank_0([&] { make_unreadable(scratch / "step_1/manifest.json"); });
  const Warnings warnings;
  optimizer.save_checkpoint(scratch / "step_3", {}, CheckpointOptions().keep_last(1));
  EXPECT_EQ(warnings.with("step_3: is saved, but no older checkpoint was deleted").size(),
      world()->rank() == 0 ? 1U : 0U);
  EXPECT_EQ(names(), Names({"latest", "step_1", "step_2", "step_3"}));
}

TEST_F(Publish, OthersThatCannotBeReadAreNoReasonNotToSave) {
  optimizer.save_checkpoint(scratch / "step_1");
  on_rank_0([&] {
    fs::create_directory(scratch / ".other.partial");
    make_unreadable(scratch / "step_1/manifest.json");
    make_unreadable(scratch / ".other.partial/manifest.json");
  });
  const Warnings warnings;
  optimizer.save_checkpoint(scratch / "step_2");
  EXPECT_EQ(warnings.with("step_2: may count as older than what other hosts save").size(),
      world()->rank() == 0 ? 1U : 0U);
  EXPECT_EQ(names(), Names({".other.partial", "latest", "step_1", "step_2"}));
}

// That clocks of hosts differ, and a job is killed before `latest` has moved, does not make a new checkpoint an old one.
TEST_F(Publish, IsTheNewestOfAllThatAreThere) {
  optimizer.save_checkpoint(scratch / "step_1");
  on_rank_0([&] { make_small_checkpoint(scratch / "step_2", int64_t{1} << 62); });
  optimizer.save_checkpoint(scratch / "step_3");
  EXPECT_EQ(latest_checkpoint(scratch.path()), scratch / "step_3");
}

// A save that fails before it has made anything deletes nothing: what a killed job left may be all that there is.
TEST_F(Publish, WhatIsRefusedDeletesNoLeftover) {
  optimizer.save_checkpoint(scratch / "last");
  on_rank_0([&] {
    fs::rename(scratch / "last", scratch / ".last.partial");
    fs::create_directory(scratch / "last");
    std::ofstream(scratch / "last/notes") << "mine";
  });
  expect_error([&] { optimizer.save_checkpoint(scratch / "last"); }, {"last: is there already"});
  EXPECT_TRUE(fs::exists(scratch / ".last.partial/manifest.json"));
  world_barrier();
  on_rank_0([&] {
    fs::remove_all(scratch / "last");
    make_unreadable(scratch / ".last.partial/manifest.json");
  });
  expect_error(
      [&] { optimizer.save_checkpoint(scratch / "last"); }, {".last.partial: is in the way", "move it away"});
  EXPECT_TRUE(fs::exists(scratch / ".last.partial/module.safetensors"));
}

TEST_F(Publish, OneThatIsNotOnTheDiskGivesItsPlaceBack) {
  optimizer.save_checkpoint(scratch / "best");
  const State old = full_state(optimizer);
  for (const bool can_give_back : {true, false}) {
    step(0);
    int renames = 0;
    const WatchedCalls watched([&](const std::string& call, const std::string& path) {
      if (call == "renameat2" && ++renames > 1) return can_give_back ? 0 : EIO;
      return call == "fsync" && path == scratch.path() && renames > 0 ? EIO : 0;
    });
    expect_error([&] { optimizer.save_checkpoint(scratch / "best"); }, {scratch.path(), "cannot be synced"});
    if (can_give_back) {
      EXPECT_EQ(names(), Names({"best", "latest"}));
      expect_is("best", old);
    } else {
      EXPECT_TRUE(fs::exists(scratch / ".best.partial/manifest.json"))
          << "the old one: the other may be lost";
    }
  }
}

}  // namespace
}  // namespace zerosched::testing
