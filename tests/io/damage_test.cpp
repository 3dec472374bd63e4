// Checkpoints that do not fit or are damaged: every rank throws the same, and the optimizer is as it was.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/adamw_schedulefree_paper.h>
#include <zerosched/safetensors.h>
#include <zerosched/sgd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace zerosched::testing {
namespace {

namespace fs = std::filesystem;

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_all(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return at == std::string::npos ? text : text.replace(at, what.size(), by);
}

class Damage : public ::testing::Test {
 protected:
  void SetUp() override {
    optimizer = std::make_unique<AdamWScheduleFree>(std::vector<ParameterGroup>{ParameterGroup(parameters)},
        world(), AdamWScheduleFreeOptions(0.01), buckets_of(300));
    step(0);
    optimizer->save_checkpoint(whole);
    step(1);
  }

  void step(int64_t number) {
    backward(parameters, random_gradients(parameters, number, world()->rank()));
    optimizer->step();
  }

  /// A copy of the checkpoint for rank 0 to damage.
  std::string copy() {
    const std::string path = scratch / ("copy" + std::to_string(copies++));
    on_rank_0([&] { fs::copy(whole, path, fs::copy_options::recursive); });
    return path;
  }

  void expect_refused(
      ShardedOptimizer& target, const std::string& path, const std::vector<std::string>& parts) {
    const State before = full_state(target);
    const auto lr = target.param_groups()[0].options().get_lr();
    expect_error([&] { target.load_checkpoint(path); }, parts);
    expect_same_bits(full_state(target), before);
    EXPECT_EQ(target.param_groups()[0].options().get_lr(), lr);
    world_barrier();
  }

  void expect_refused(const std::string& path, const std::vector<std::string>& parts) {
    expect_refused(*optimizer, path, parts);
  }

  template <typename Change>
  void expect_manifest_refused(Change&& change, const std::vector<std::string>& parts) {
    const std::string path = copy();
    on_rank_0([&] { write_all(path + "/manifest.json", change(read_all(path + "/manifest.json"))); });
    expect_refused(path, parts);
  }

  const Scratch scratch;
  const std::string whole = scratch / "whole";
  NamedParameters parameters = make_parameters(odd_shapes());
  std::unique_ptr<AdamWScheduleFree> optimizer;
  int copies = 0;
};

TEST_F(Damage, ThereIsNone) {
  optimizer->load_checkpoint(copy());
  expect_refused(scratch / "nowhere", {"nowhere/manifest.json", "No such file"});
  expect_refused(scratch.path(), {"manifest.json", "No such file"});
  step(2);
}

TEST_F(Damage, EachFileMissingCutOrLonger) {
  for (const auto& entry : fs::directory_iterator(whole)) {
    const std::string name = entry.path().filename();
    const auto bytes = static_cast<int64_t>(fs::file_size(entry.path()));
    const std::string missing = copy();
    on_rank_0([&] { fs::remove(missing + '/' + name); });
    expect_refused(missing, {name, "No such file"});
    for (const int64_t length : {int64_t{0}, int64_t{7}, bytes / 2, bytes - 1, bytes + 1}) {
      // A line more at the end of JSON text is no damage.
      if (name == "manifest.json" && length >= bytes - 1) continue;
      const std::string cut = copy();
      on_rank_0([&] { fs::resize_file(cut + '/' + name, static_cast<uintmax_t>(length)); });
      expect_refused(cut, {name});
    }
  }
}

TEST_F(Damage, FlippedBits) {
  for (const auto& entry : fs::directory_iterator(whole)) {
    const std::string name = entry.path().filename();
    const std::string bytes = read_all(entry.path());
    if (name == "manifest.json" || bytes.size() < 200) continue;
    for (const size_t at : {size_t{3}, size_t{40}, bytes.size() / 2, bytes.size() - 1}) {
      const std::string path = copy();
      on_rank_0([&] {
        std::string damaged = bytes;
        damaged[at] = static_cast<char>(damaged[at] ^ 4);
        write_all(path + '/' + name, damaged);
      });
      expect_refused(path, {name});
    }
  }
}

TEST_F(Damage, Manifest) {
  using Text = const std::string&;
  expect_manifest_refused([](Text) { return "not JSON"; }, {"manifest.json", "not JSON"});
  expect_manifest_refused([](Text) { return "[]"; }, {"manifest.json", "not a JSON object"});
  expect_manifest_refused([](Text t) { return replaced(t, "\"version\": 1", "\"version\": 2"); },
      {"manifest.json", "version 2", "newer zerosched"});
  expect_manifest_refused([](Text t) { return replaced(t, "zerosched checkpoint", "another checkpoint"); },
      {"manifest.json", "format"});
  expect_manifest_refused([](Text t) { return replaced(t, "\"optimizer\"", "\"optimiser\""); },
      {"manifest.json", "'optimizer' is missing"});
  expect_manifest_refused([](Text t) { return replaced(t, "\"created\"", "\"format\""); },
      {"manifest.json", "'format' appears twice"});
  expect_manifest_refused(
      [](Text t) { return replaced(t, "rank_00000", "../rank_00000"); }, {"manifest.json", "rank_00000"});
  expect_manifest_refused(
      [](Text t) { return replaced(t, "\"k\": 1", "\"k\": -1"); }, {"manifest.json", "'k'"});
  expect_manifest_refused([](Text t) { return replaced(t, "z:0-7:p0", "z:0-7:p9000"); }, {"p9000"});
  expect_manifest_refused([](Text t) { return replaced(t, "z:0-1:p6", "z:0-2:p6"); }, {"p6"});
  expect_manifest_refused(
      [](Text t) {
        const size_t begin = t.find("\"z:0-7:p0\"");
        const std::string twice = replaced(t.substr(begin, t.find(',', begin) + 1 - begin), "0-7", "3-7");
        return replaced(t, "\"z:0-7:p0\"", twice + "\"z:0-7:p0\"");
      },
      {"tensor z of parameter 'p0'", "twice"});
  expect_manifest_refused([](Text t) { return replaced(t, "\"eps\"", "\"epsilon\""); }, {"group 0", "eps"});
}

TEST_F(Damage, OtherModels) {
  const auto refused = [&](const NamedParameters& others, const std::vector<std::string>& parts) {
    AdamWScheduleFree other({ParameterGroup(others)}, world());
    expect_refused(other, whole, parts);
  };
  NamedParameters renamed = make_parameters(odd_shapes());
  renamed[3].first = "blocks.3.bias";
  refused(renamed, {"has no parameter 'blocks.3.bias'"});
  auto shapes = odd_shapes();
  shapes[5] = {3, 100};
  refused(make_parameters(shapes), {"p5", "[100, 3]", "[3, 100]"});
  shapes = odd_shapes();
  shapes.pop_back();
  refused(make_parameters(shapes), {"has parameter 'p9'"});
  refused(make_parameters(odd_shapes(), at::kDouble), {"p0", "F32", "F64"});
  NamedParameters transposed = make_parameters(odd_shapes());
  transposed[5].second = at::ones({3, 100}).t().requires_grad_();
  refused(transposed, {"p5", "strides"});

  const NamedParameters same = make_parameters(odd_shapes());
  AdamWScheduleFreePaper paper({ParameterGroup(same)}, world());
  expect_refused(paper, whole, {"AdamWScheduleFree,", "AdamWScheduleFreePaper"});
  const NamedParameters grouped = make_parameters(odd_shapes());
  AdamWScheduleFree groups({ParameterGroup(NamedParameters(grouped.begin(), grouped.begin() + 4)),
                               ParameterGroup(NamedParameters(grouped.begin() + 4, grouped.end()))},
      world());
  expect_refused(groups, whole, {"1 parameter groups", "2"});
  NamedParameters frozen = make_parameters(odd_shapes());
  frozen.emplace_back("extra", at::ones({3}));
  refused(frozen, {"module.safetensors", "has no 'frozen:extra'"});
}

TEST_F(Damage, SafetensorsThatDoNotFit) {
  const std::string path = scratch / "model.safetensors";
  export_safetensors(*optimizer, path);
  const auto refused = [&](const NamedParameters& others, const std::vector<std::string>& parts) {
    AdamWScheduleFree other({ParameterGroup(others)}, world());
    const State before = full_state(other);
    expect_error([&] { import_safetensors(other, path); }, parts);
    expect_same_bits(full_state(other), before);
    world_barrier();
  };
  auto shapes = odd_shapes();
  shapes[5] = {3, 100};
  refused(make_parameters(shapes), {path, "p5", "[100, 3]", "[3, 100]"});
  shapes = odd_shapes();
  shapes.push_back({4});
  refused(make_parameters(shapes), {path, "has no tensor 'p10'"});
  shapes = odd_shapes();
  shapes.pop_back();
  refused(make_parameters(shapes), {path, "'p9'", "neither"});
  world_barrier();
  on_rank_0([&] { fs::resize_file(path, fs::file_size(path) - 1); });
  refused(make_parameters(odd_shapes()), {path, "safetensors"});
  expect_error([&] { export_safetensors(*optimizer, scratch / "no/such/folder"); },
      {"no/such/folder", "No such file"});
  expect_error([&] { export_safetensors(*optimizer, path, "z"); }, {"\"z\"", "\"x\" or \"y\""});
}

}  // namespace
}  // namespace zerosched::testing
