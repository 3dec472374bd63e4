// What is refused before it does harm: numbers in a manifest that no training makes, gradients that would be lost, files
// that cannot be written.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/checkpoint.h>
#include <zerosched/safetensors.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>

namespace zerosched::testing {
namespace {

namespace fs = std::filesystem;

class Refusals : public ::testing::Test {
 protected:
  void step(int64_t number) {
    backward(parameters, random_gradients(parameters, number, world()->rank()));
    optimizer.step();
  }

  /// Loads a copy of `whole` in whose manifest `what` is `by`.
  void expect_manifest_refused(
      const std::string& what, const std::string& by, const std::vector<std::string>& parts) {
    const std::string path = scratch / "copy";
    on_rank_0([&] {
      fs::remove_all(path);
      fs::copy(whole, path, fs::copy_options::recursive);
      std::ifstream file(path + "/manifest.json");
      std::string text((std::istreambuf_iterator<char>(file)), {});
      const size_t at = text.find(what);
      ASSERT_NE(at, std::string::npos) << what;
      // The number that follows.
      const size_t begin = at + what.size();
      std::ofstream(path + "/manifest.json")
          << text.replace(begin, text.find_first_of(",\n", begin) - begin, by);
    });
    const State before = full_state(optimizer);
    for (const bool partial : {false, true}) {
      if (partial && parts.front() == "options") continue;  // which a partial load does not take
      expect_error([&] { optimizer.load_checkpoint(path, LoadOptions().partial(partial)); }, parts);
    }
    expect_same_bits(full_state(optimizer), before);
    world_barrier();
  }

  std::set<std::string> names() const {
    std::set<std::string> found;
    for (const auto& entry : fs::directory_iterator(scratch.path())) found.insert(entry.path().filename());
    return found;
  }

  const Scratch scratch;
  const std::string whole = scratch / "whole";
  NamedParameters parameters = make_parameters({{50}, {6, 7}});
  AdamWScheduleFree optimizer{
      {ParameterGroup(parameters)}, world(), AdamWScheduleFreeOptions(0.01).warmup_steps(3)};
};

TEST_F(Refusals, NumbersThatNoTrainingMakes) {
  step(0);
  optimizer.save_checkpoint(whole);
  step(1);
  expect_manifest_refused(
      "\"weight_sum\": ", "\"nan\"", {"copy", "'weight_sum' of group 0 is nan; expected"});
  expect_manifest_refused("\"weight_sum\": ", "-1", {"copy", "'weight_sum' of group 0"});
  expect_manifest_refused("\"lr_max\": ", "\"inf\"", {"copy", "'lr_max' of group 0"});
  expect_manifest_refused("\"y_weight\": ", "1.5", {"copy", "'y_weight' of group 0", "0 to 1"});
  expect_manifest_refused("\"k\": ", "9223372036854775807", {"copy", "'k'", "range"});
  expect_manifest_refused(
      "\"warmup_steps\",\n     ", "1e300", {"options", "warmup_steps is 1e+300", "no integer"});
}

TEST_F(Refusals, GradientsThatWouldBeLost) {
  {
    const auto hold = optimizer.no_sync();
    backward(parameters, random_gradients(parameters, 0, world()->rank()));
  }
  const std::vector<std::string> parts = {"no_sync()", "would not be saved", "step()", "zero_grad()"};
  expect_error([&] { optimizer.save_checkpoint(whole); }, parts);
  expect_error([&] { save_checkpoint(whole, {&optimizer}); }, parts);
  expect_error([&] { export_safetensors(optimizer, scratch / "model.safetensors"); }, parts);
  world_barrier();
  EXPECT_EQ(names(), std::set<std::string>());
  optimizer.zero_grad();
  optimizer.save_checkpoint(whole);
}

TEST_F(Refusals, AnExportThatFailsLeavesNothing) {
  on_rank_0([&] { fs::create_directories(scratch / "model.safetensors/in the way"); });
  expect_error([&] { export_safetensors(optimizer, scratch / "model.safetensors"); },
      {"model.safetensors: cannot be put in place", "directory"});
  EXPECT_EQ(names(), std::set<std::string>({"model.safetensors"}));
}

TEST_F(Refusals, APipeCalledManifestKeepsNobodyWaiting) {
  optimizer.save_checkpoint(scratch / "step_1");
  on_rank_0([&] {
    fs::create_directory(scratch / "step_2");
    ASSERT_EQ(::mkfifo((scratch / "step_2/manifest.json").c_str(), 0600), 0);
  });
  EXPECT_EQ(latest_checkpoint(scratch.path()), scratch / "step_1");
  optimizer.save_checkpoint(scratch / "step_3", {}, CheckpointOptions().keep_last(1));
  expect_error(
      [&] { optimizer.load_checkpoint(scratch / "step_2"); }, {"manifest.json", "not a regular file"});
}

TEST_F(Refusals, SayWhichFolderOrFileTheyAreOf) {
  const auto path_of = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const CheckpointError& error) {
      return error.path();
    }
    return "no CheckpointError";
  };
  const std::string in_the_way = scratch / "notes";
  on_rank_0([&] { std::ofstream(in_the_way) << "mine"; });
  EXPECT_EQ(path_of([&] { optimizer.save_checkpoint(in_the_way); }), in_the_way);
  EXPECT_EQ(path_of([&] { save_checkpoint(in_the_way, {&optimizer}); }), in_the_way);
  EXPECT_EQ(path_of([&] { optimizer.load_checkpoint(scratch / "none"); }), scratch / "none");
  EXPECT_EQ(path_of([&] { load_checkpoint(scratch / "none", {&optimizer}); }), scratch / "none");
  EXPECT_EQ(path_of([&] { export_safetensors(optimizer, in_the_way + "/m"); }), in_the_way + "/m");
  EXPECT_EQ(path_of([&] { import_safetensors(optimizer, in_the_way); }), in_the_way);
}

// By a job that goes on training, while another evaluates what it saves.
TEST_F(Refusals, NotWhatIsReplacedWhileItIsRead) {
  optimizer.save_checkpoint(scratch / "last");
  step(0);
  optimizer.save_checkpoint(scratch / "next");
  for (int64_t moment = 0; moment < 40; ++moment) {
    std::thread other;
    if (world()->rank() == 0) {
      other = std::thread([&] {
        std::this_thread::sleep_for(std::chrono::microseconds(50 * moment));
        EXPECT_EQ(::renameat2(AT_FDCWD, (scratch / "next").c_str(), AT_FDCWD, (scratch / "last").c_str(),
                      RENAME_EXCHANGE),
            0);
      });
    }
    optimizer.load_checkpoint(scratch / "last");
    if (other.joinable()) other.join();
    world_barrier();
  }
}

// Of killed jobs, wherever they exported to.
TEST_F(Refusals, AnExportCleansUpAfterKilledOnes) {
  on_rank_0([&] {
    std::ofstream(scratch / ".other.safetensors.exporting") << "half";
    std::ofstream(scratch / ".model.safetensors.exporting") << "half";
    std::ofstream(scratch / "model.safetensors.new") << "somebody's";
  });
  export_safetensors(optimizer, scratch / "model.safetensors");
  EXPECT_EQ(names(), std::set<std::string>({"model.safetensors", "model.safetensors.new"}));
}

}  // namespace
}  // namespace zerosched::testing
