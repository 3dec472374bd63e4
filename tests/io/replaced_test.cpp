// A checkpoint that another job replaces or deletes while it is loaded: what is loaded is one of the two.
#include "engine/toy.h"
#include "io/scratch.h"
#include "io/watched_calls.h"
#include "support/world.h"

#include <zerosched/checkpoint.h>

#include <filesystem>
#include <functional>

#include <fcntl.h>

namespace zerosched::testing {
namespace {

namespace fs = std::filesystem;

class Replaced : public ::testing::Test {
 protected:
  struct Saved {
    State state;
    double lr;
  };

  Saved now() { return {full_state(optimizer), optimizer.param_groups()[0].options().get_lr()}; }

  Saved train_and_save(int64_t step, double lr, const std::string& name) {
    optimizer.param_groups()[0].options().set_lr(lr);
    backward(parameters, random_gradients(parameters, step, world()->rank()));
    optimizer.step();
    optimizer.save_checkpoint(name);
    return now();
  }

  /// Loads, and when rank 0 opens its file number `moment` of this folder `change` happens. Whether there were so many.
  bool load_with_change_at(
      int64_t moment, const std::string& path, const LoadOptions& how, const std::function<void()>& change) {
    int64_t opened = 0;
    const WatchedCalls watched([&](const std::string& call, const std::string& opening) {
      const bool is_ours = call == "open" && opening.compare(0, scratch.path().size(), scratch.path()) == 0;
      if (is_ours && world()->rank() == 0 && ++opened == moment) change();
      return 0;
    });
    optimizer.load_checkpoint(path, how);
    return on_all_ranks(world()->rank() != 0 || opened >= moment);
  }

  void exchange() const {
    EXPECT_EQ(::renameat2(AT_FDCWD, (scratch / "next").c_str(), AT_FDCWD, (scratch / "last").c_str(),
                  RENAME_EXCHANGE),
        0);
  }

  const Scratch scratch;
  NamedParameters parameters = make_parameters({{50}, {6, 7}});
  AdamWScheduleFree optimizer{{ParameterGroup(parameters)}, world()};
};

TEST_F(Replaced, ByAnotherOfItsName) {
  const Saved first = train_and_save(0, 0.01, scratch / "last");
  const Saved second = train_and_save(1, 0.02, scratch / "next");
  bool second_is_last = false;
  for (const bool partial : {true, false}) {  // the first leaves the options as they are
    const auto how = LoadOptions().partial(partial);
    int64_t moment = 1;
    for (; load_with_change_at(moment, scratch / "last", how, [this] { exchange(); }); ++moment) {
      second_is_last = !second_is_last;
      const Saved loaded = now();
      const Saved& expected = second_is_last ? second : first;
      expect_same_bits(loaded.state, expected.state);
      EXPECT_EQ(loaded.lr, partial ? second.lr : expected.lr);
      world_barrier();
    }
    EXPECT_GT(moment, 4) << "the manifest, the module's file, a rank's file for checksums, and again to read";
  }
}

TEST_F(Replaced, ByTheNextOfARotation) {
  const Saved first = train_and_save(0, 0.01, scratch / "step_1");
  const Saved second = train_and_save(1, 0.02, scratch / "step_2");
  const auto rotate = [&] {
    fs::remove(scratch / "latest");
    fs::create_symlink("step_2", scratch / "latest");
    fs::rename(scratch / "step_1", scratch / ".step_1.deleted");
  };
  bool was_first = false;
  for (int64_t moment = 1; load_with_change_at(moment, scratch / "latest", {}, rotate); ++moment) {
    EXPECT_FALSE(was_first) << "it was gone before all of it was read";
    const Saved loaded = now();
    was_first = loaded.lr == first.lr;  // all of it was read before it went
    const Saved& expected = was_first ? first : second;
    expect_same_bits(loaded.state, expected.state);
    EXPECT_EQ(loaded.lr, expected.lr);
    world_barrier();
    on_rank_0([&] {
      fs::remove(scratch / "latest");
      fs::create_symlink("step_1", scratch / "latest");
      fs::rename(scratch / ".step_1.deleted", scratch / "step_1");
    });
  }
}

// Whoever replaces it each time is told, not a file that seems damaged.
TEST_F(Replaced, EachTime) {
  train_and_save(0, 0.01, scratch / "last");
  train_and_save(1, 0.02, scratch / "next");
  const State before = full_state(optimizer);
  bool has_read_manifest = false;
  const WatchedCalls watched([&](const std::string& call, const std::string& path) {
    if (call != "open" || world()->rank() != 0 || path.find("last/") == std::string::npos) return 0;
    const bool is_manifest = path == scratch / "last/manifest.json";
    if (has_read_manifest && !is_manifest) exchange();
    has_read_manifest = is_manifest;
    return 0;
  });
  expect_error(
      [&] { optimizer.load_checkpoint(scratch / "last"); }, {"was replaced each time while it was read"});
  expect_same_bits(full_state(optimizer), before);
}

TEST_F(Replaced, NothingThatWasNeverThere) {
  expect_error(
      [&] { optimizer.load_checkpoint(scratch / "nowhere"); }, {"nowhere/manifest.json: cannot open"});
  expect_error([&] { optimizer.load_checkpoint(latest_checkpoint(scratch / "nowhere")); },
      {"no checkpoint is named", "latest_checkpoint()"});
}

}  // namespace
}  // namespace zerosched::testing
