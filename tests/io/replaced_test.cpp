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
    const auto exchange = [&] {
      EXPECT_EQ(::renameat2(AT_FDCWD, (scratch / "next").c_str(), AT_FDCWD, (scratch / "last").c_str(),
                    RENAME_EXCHANGE),
          0);
    };
    int64_t moment = 1;
    for (; load_with_change_at(moment, scratch / "last", how, exchange); ++moment) {
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
  train_and_save(0, 0.01, scratch / "step_1");
  const Saved second = train_and_save(1, 0.02, scratch / "step_2");
  const auto rotate = [&] {
    fs::remove(scratch / "latest");
    fs::create_symlink("step_2", scratch / "latest");
    fs::rename(scratch / "step_1", scratch / ".step_1.deleted");
  };
  for (int64_t moment = 1; load_with_change_at(moment, scratch / "latest", {}, rotate); ++moment) {
    const Saved loaded = now();
    expect_same_bits(loaded.state, second.state);
    EXPECT_EQ(loaded.lr, second.lr);
    world_barrier();
    on_rank_0([&] {
      fs::remove(scratch / "latest");
      fs::create_symlink("step_1", scratch / "latest");
      fs::rename(scratch / ".step_1.deleted", scratch / "step_1");
    });
  }
}

}  // namespace
}  // namespace zerosched::testing
