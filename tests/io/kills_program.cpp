// A job that trains two optimizers, saves them as one checkpoint again and again, keeps the last ones, exports, and goes on
// from the newest after it was killed. kills_test.py kills it.
//
// usage: kills_program ROOT ACTION
//
//   train N   from the newest checkpoint to its step + N, for ever if N is 0
//   save      from the newest checkpoint one step further, and ends well
//
// Prints "resumed STEP" once it has loaded. Gradients depend on the step alone, and so does the state: what was loaded is
// compared with what it must be.
#include "engine/toy.h"

#include <zerosched/checkpoint.h>
#include <zerosched/safetensors.h>
#include <zerosched/session.h>
#include <zerosched/sgd_schedulefree.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace zerosched::testing {
namespace {

/// Two nets and their optimizers.
struct Pair {
  explicit Pair(const std::shared_ptr<Communicator>& communicator)
      : generator({ParameterGroup(g)}, communicator, AdamWScheduleFreeOptions(0.01), sharding()),
        critic({ParameterGroup(c)}, communicator, SGDScheduleFreeOptions(0.1), sharding()) {}

  static ShardingOptions sharding() { return buckets_of(1000).gradients(GradientInput::already_averaged); }

  void step(int64_t number) {
    set_gradients(g, random_gradients(g, number, 0));
    generator.step();
    set_gradients(c, random_gradients(c, number, 1));
    critic.step();
  }

  NamedParameters g = make_parameters(odd_shapes());
  NamedParameters c = make_parameters({{60, 25}, {9}});
  AdamWScheduleFree generator;
  SGDScheduleFree critic;
};

bool same_tensors(ShardedOptimizer& a, ShardedOptimizer& b) {
  for (const char* which : {"z", "x", "y"}) {
    const auto other = b.full_state(which);
    for (const auto& [name, value] : a.full_state(which)) {
      if (!same_bits(value, other.at(name))) return false;
    }
  }
  return true;
}

/// A folder under a name that every save replaces, beside one of each step.
void save(Pair& pair, const std::string& root, int64_t step) {
  CheckpointExtra extra;
  extra.shared.json["step"] = std::to_string(step);
  save_checkpoint(root + "/step_" + std::to_string(step), {&pair.generator, &pair.critic}, extra,
      CheckpointOptions().keep_last(2));
  save_checkpoint(root + "/last", {&pair.generator, &pair.critic}, extra);
  export_safetensors(pair.generator, root + "/generator.safetensors");
}

int run(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string root = argv[1], action = argv[2];
  Session session(argc, argv, SessionOptions().timeout(60));
  Pair pair(session.communicator());
  int64_t step = 0;
  const std::string newest = latest_checkpoint(root, *session.communicator());
  if (!newest.empty()) {
    const CheckpointExtra extra = load_checkpoint(newest, {&pair.generator, &pair.critic});
    step = std::atoll(extra.shared.json.at("step").c_str());
    Pair expected(session.communicator());
    for (int64_t done = 0; done < step; ++done) expected.step(done);
    if (!same_tensors(pair.generator, expected.generator) || !same_tensors(pair.critic, expected.critic)) {
      std::fprintf(
          stderr, "%s is not both optimizers of step %lld\n", newest.c_str(), static_cast<long long>(step));
      return 3;
    }
  }
  if (session.rank() == 0) {
    std::printf("resumed %lld\n", static_cast<long long>(step));
    std::fflush(stdout);
  }
  const int64_t steps = action == "save" ? 1 : std::atoll(argv[3]);
  for (const int64_t end = step + steps; steps == 0 || step < end;) {
    pair.step(step++);
    save(pair, root, step);
  }
  return 0;
}

}  // namespace
}  // namespace zerosched::testing

int main(int argc, char** argv) { return zerosched::testing::run(argc, argv); }
