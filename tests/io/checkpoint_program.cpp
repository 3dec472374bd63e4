// One rank of the jobs that checkpoint_jobs_test.py starts. Trains parameters with gradients that depend on
// the step alone, so that every world size computes the same bits; saves and loads; and may be killed at any
// call that changes the file system.
#include "engine/toy.h"
#include "io/kill_at_call.h"
#include "support/gather.h"

#include <zerosched/safetensors.h>
#include <zerosched/session.h>

#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>

namespace zerosched::testing {
namespace {

// --name value pairs.
class Arguments {
 public:
  Arguments(int argc, char** argv) {
    for (int i = 1; i + 1 < argc; i += 2) values_[argv[i] + 2] = argv[i + 1];
  }
  std::string text(const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? std::string() : found->second;
  }
  int64_t number(const std::string& name, int64_t otherwise) const {
    return text(name).empty() ? otherwise : std::atoll(text(name).c_str());
  }

 private:
  std::map<std::string, std::string> values_;
};

std::string digest_of(const State& state) {
  std::string bytes;
  for (const auto& [which, tensors] : state) {
    for (const auto& [name, tensor] : tensors) {
      const at::Tensor contiguous = tensor.contiguous();
      bytes += which + name;
      bytes.append(static_cast<const char*>(contiguous.const_data_ptr()), contiguous.nbytes());
    }
  }
  return std::to_string(std::hash<std::string>()(bytes));
}

void dump(const State& state, const std::string& path) {
  nlohmann::json whole;
  for (const auto& [which, tensors] : state) {
    for (const auto& [name, tensor] : tensors) {
      const at::Tensor flat = tensor.to(at::kDouble).contiguous();
      const double* values = flat.const_data_ptr<double>();
      whole[which][name] = std::vector<double>(values, values + flat.numel());
    }
  }
  std::ofstream(path) << whole;
}

int run(int argc, char** argv) {
  const Arguments arguments(argc, argv);
  Session session(argc, argv, SessionOptions().timeout(60));
  auto shapes = odd_shapes();
  shapes.push_back({arguments.number("rows", 40), 25});
  const NamedParameters parameters = make_parameters(shapes);
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, session.communicator(),
      AdamWScheduleFreeOptions(0.01).betas({0.9, 0.95}).weight_decay(0.1).warmup_steps(4),
      buckets_of(arguments.number("bucket-bytes", 1000)).gradients(GradientInput::already_averaged));

  int64_t step = 0;
  if (!arguments.text("load").empty()) {
    const CheckpointExtra extra = optimizer.load_checkpoint(arguments.text("load"));
    const auto saved = extra.shared.json.find("step");
    step = saved == extra.shared.json.end() ? arguments.number("step", 0) : std::atoll(saved->second.c_str());
  }
  for (const int64_t end = step + arguments.number("steps", 0); step < end; ++step) {
    set_gradients(parameters, random_gradients(parameters, step, 0));
    optimizer.step();
  }
  if (!arguments.text("save").empty()) {
    CheckpointExtra extra;
    extra.shared.json["step"] = std::to_string(step);
    if (arguments.number("kill-rank", 0) == session.rank()) kill_at_call(arguments.number("kill-at", 0));
    optimizer.save_checkpoint(arguments.text("save"), extra);
    kill_at_call(0);
  }
  if (!arguments.text("export").empty()) export_safetensors(optimizer, arguments.text("export"));
  const State state = full_state(optimizer);
  if (!arguments.text("dump").empty() && session.rank() == 0) dump(state, arguments.text("dump"));
  if (session.rank() == 0)
    std::printf("step %lld digest %s\n", static_cast<long long>(step), digest_of(state).c_str());
  return 0;
}

}  // namespace
}  // namespace zerosched::testing

int main(int argc, char** argv) { return zerosched::testing::run(argc, argv); }
