// What one training step would take on GPUs that are not there: the library's engine on a machine model. Prints a table
// of bucket sizes and worlds for GPTs of three sizes, and writes one step as a trace that https://ui.perfetto.dev opens.
#include "layout/layout.h"
#include "support/json_file.h"
#include "timeline/timed_training.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace zerosched::testing {
namespace {

constexpr double kMilliseconds = 1e3;
constexpr int64_t kMebibyte = int64_t{1} << 20;
// Launches are in the order of the first step from the second on; steps 1, 2, 3, 5, 9 look at the bits of all parameters.
constexpr int kSteps = 6;

struct Options {
  std::vector<std::string> models = {"124M", "1.3B", "7B"};
  std::vector<int> gpus = {1, 8, 64, 512, 1024};
  std::vector<int64_t> bucket_mebibytes = {25, 50, 100, 200, 400};
  int buffers = ShardingOptions().bucket_buffers();
  double max_grad_norm = 0;
  std::string trace, json;
};

struct Row {
  std::string model;
  int gpus;
  int64_t bucket_mebibytes;
  size_t buckets;
  StepTimes times;
};

/// Of y and of a rank's share of z, x and v: without gradients and activations.
double least_bytes(const Transformer& model, int gpus) {
  return static_cast<double>(numel_of(model.parts())) * (2 + 12.0 / gpus);
}

Row run(const Transformer& model, int gpus, int64_t bucket_mebibytes, const Options& options) {
  TimedRuntime runtime(h100(gpus));
  TimedTraining::Options training_options;
  training_options.tokens = model.tokens;
  training_options.reads_loss = true;
  training_options.sharding.bucket_bytes(bucket_mebibytes * kMebibyte).bucket_buffers(options.buffers);
  if (options.max_grad_norm > 0) training_options.sharding.max_grad_norm(options.max_grad_norm);
  TimedTraining training(runtime, model.parts(), training_options);
  Row row{model.name, gpus, bucket_mebibytes, training.engine().state().layout().buckets.size(), {}};
  for (int step = 0; step < kSteps; ++step) row.times = training.step();
  if (!options.trace.empty()) {
    std::ofstream trace(options.trace);
    write_trace(trace, runtime.timeline(), row.times.begin, row.times.end);
    if (!trace.flush()) throw std::runtime_error(options.trace + " cannot be written");
  }
  return row;
}

void print(const Row& row, const std::string& remark) {
  const StepTimes& t = row.times;
  std::printf("%5s %5d %6lld %7zu %9.2f %9.2f %9.2f %8.2f %8.2f %7.2f %8.2f %8.2f %8.2f %5lld %s\n",
      row.model.c_str(), row.gpus, static_cast<long long>(row.bucket_mebibytes), row.buckets,
      t.seconds() * kMilliseconds, t.forward * kMilliseconds, t.backward * kMilliseconds,
      (t.reduce_scatter - t.reduce_scatter_exposed) * kMilliseconds, t.reduce_scatter_exposed * kMilliseconds,
      t.update * kMilliseconds, (t.all_gather - t.all_gather_exposed) * kMilliseconds,
      t.all_gather_exposed * kMilliseconds, t.host * kMilliseconds, static_cast<long long>(t.host_waits),
      remark.c_str());
}

nlohmann::json as_json(const Row& row) {
  const StepTimes& t = row.times;
  return {{"model", row.model}, {"gpus", row.gpus}, {"bucket_mebibytes", row.bucket_mebibytes},
      {"buckets", row.buckets}, {"step_seconds", t.seconds()}, {"forward_seconds", t.forward},
      {"backward_seconds", t.backward}, {"reduce_scatter_seconds", t.reduce_scatter},
      {"reduce_scatter_exposed_seconds", t.reduce_scatter_exposed}, {"update_seconds", t.update},
      {"all_gather_seconds", t.all_gather}, {"all_gather_exposed_seconds", t.all_gather_exposed},
      {"host_seconds", t.host}, {"host_waits", t.host_waits}, {"device_calls", t.calls},
      {"gradient_bytes", t.gradient_bytes}};
}

int main_of(const Options& options) {
  auto all = nlohmann::json::array();
  std::printf(
      "ms of one step; hid: while the GPU computes, exp: while it does nothing else\n"
      "model  gpus bucket buckets      step   forward  backward   RS hid   RS exp  update   AG hid   AG exp  "
      "   host "
      "waits\n              MiB\n");
  for (const Transformer& model : transformers()) {
    if (std::count(options.models.begin(), options.models.end(), model.name) == 0) continue;
    for (const int gpus : options.gpus) {
      if (const double needed = least_bytes(model, gpus);
          needed > static_cast<double>(h100(gpus).memory_bytes)) {
        std::printf("%5s %5d parameters and state take %.0f GB and do not fit\n", model.name.c_str(), gpus,
            needed / 1e9);
        continue;
      }
      const int64_t usual = detail::default_bucket_bytes(detail::Wire::nccl, gpus) / kMebibyte;
      std::set<int64_t> buckets(options.bucket_mebibytes.begin(), options.bucket_mebibytes.end());
      if (buckets.size() > 1) buckets.insert(usual);
      std::vector<Row> rows;
      for (const int64_t bucket : buckets) {
        rows.push_back(run(model, gpus, bucket, options));
      }
      const auto best = std::min_element(rows.begin(), rows.end(),
          [](const Row& a, const Row& b) { return a.times.seconds() < b.times.seconds(); });
      for (auto row = rows.begin(); row != rows.end(); ++row) {
        std::string remark = row == best ? "best" : "";
        if (row->bucket_mebibytes == usual) remark += remark.empty() ? "default" : ", default";
        print(*row, remark);
        all.push_back(as_json(*row));
      }
    }
  }
  write_json(options.json, all);
  return 0;
}

}  // namespace
}  // namespace zerosched::testing

int main(int argc, char** argv) {
  using namespace zerosched::testing;
  Options options;
  CLI::App app("What a training step would take on GPUs that are not there.", "bench_timeline");
  app.option_defaults()->always_capture_default()->delimiter(',');
  app.add_option("--models", options.models)->check(CLI::IsMember({"124M", "1.3B", "7B"}));
  app.add_option("--gpus", options.gpus, "H100s, eight a node")->check(CLI::Range(1, 1024));
  app.add_option("--buckets", options.bucket_mebibytes, "MiB; beside several also the default")
      ->check(CLI::PositiveNumber);
  app.add_option("--buffers", options.buffers, "bucket_buffers")->check(CLI::PositiveNumber);
  app.add_option("--max-grad-norm", options.max_grad_norm, "0: no clipping")->check(CLI::NonNegativeNumber);
  app.add_option("--trace", options.trace, "a step of the last run, for https://ui.perfetto.dev");
  app.add_option("--json", options.json, "all that the table has and more");
  CLI11_PARSE(app, argc, argv);
  try {
    return main_of(options);
  } catch (const std::exception& error) {
    std::cerr << "bench_timeline: " << error.what() << '\n';
    return 1;
  }
}
