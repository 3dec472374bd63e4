#include "options.h"

#include "optimizers.h"
#include "task.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>

namespace {

std::string default_data_folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (cache != nullptr && *cache != '\0') return std::string(cache) + "/zerosched/battery";
  return std::string(home != nullptr ? home : ".") + "/.cache/zerosched/battery";
}

// CLI::Range lets NaN through.
CLI::Validator number_in(double low, double high, const std::string& description) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return {};
        return "got " + text + ", expected " + description;
      },
      description);
}

CLI::Validator integer_in(int64_t low, int64_t high) {
  const auto description = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        int64_t value = 0;
        if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return {};
        return "got " + text + ", expected " + description;
      },
      description);
}

/// The last step, and the steps before it at distances that grow by the square root of 2: 13 at most.
std::vector<int64_t> read_off_points(int64_t steps) {
  std::set<int64_t> points;
  for (int j = 0; j < 13; ++j)
    points.insert(std::llround(static_cast<double>(steps) * std::pow(2, -0.5 * j)));
  points.erase(0);
  return {points.begin(), points.end()};
}

/// What the recipe gives and what does not fit together.
std::string complete(Options& options) {
  const Recipe& recipe = recipe_of(options.task);
  if (options.optimizer.empty()) options.optimizer = recipe.optimizer;
  if (options.steps == 0) options.steps = recipe.steps;
  if (options.batch == 0) options.batch = recipe.batch;
  if (options.evaluate_at.empty()) options.evaluate_at = read_off_points(options.steps);
  std::sort(options.evaluate_at.begin(), options.evaluate_at.end());
  if (options.evaluate_at.back() > options.steps) {
    return "--evaluate-at " + std::to_string(options.evaluate_at.back()) + " is after the last of --steps " +
           std::to_string(options.steps);
  }
  if (options.schedule != "constant" && options.warmup >= options.steps) {
    return "--warmup " + std::to_string(options.warmup) + " leaves no step of --steps " +
           std::to_string(options.steps) + " to --schedule " + options.schedule;
  }
  return problem_with_optimizer(options);
}

}  // namespace

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine result;
  Options& options = result.options;
  options.data = default_data_folder();
  CLI::App app(
      "Trains one model of the battery and evaluates it at x on the way; one JSON object per line.\n"
      "Start it with mpirun or srun; alone it is a world of one rank.",
      "battery");

  constexpr int64_t kMaxSteps = int64_t{1} << 40;
  constexpr double kMaxReal = std::numeric_limits<double>::max();
  const auto fraction = number_in(0, 1, "a number from 0 to 1");
  const auto below_1 = number_in(0, std::nextafter(1.0, 0.0), "a number from 0 to below 1");

  app.add_option("--task", options.task, "model and data")->check(CLI::IsMember(task_names()))->required();
  app.add_option("--data", options.data, "folder that prepare_data.py has written")->capture_default_str();

  app.add_option("--optimizer", options.optimizer, "algorithm (default: Schedule-Free AdamW, for cnn SGD)")
      ->group("Optimizer");
  app.add_option("--lr", options.lr, "learning rate, the largest if there is a schedule")
      ->check(number_in(std::numeric_limits<double>::min(), kMaxReal, "a positive number"))
      ->required()
      ->group("Optimizer");
  app.add_option("--beta1", options.beta1,
         "weight of x in y; decay of m for adamw, gpa-adamw, adamw-schedulefree-plus")
      ->check(fraction)
      ->group("Optimizer");
  app.add_option("--beta2", options.beta2, "decay of v")->check(below_1)->group("Optimizer");
  app.add_option("--momentum", options.momentum, "for sgd; for sgd-schedulefree the weight of x in y")
      ->check(fraction)
      ->group("Optimizer");
  app.add_option("--refinement", options.refinement, "C of refined Schedule-Free, for adamw-schedulefree")
      ->check(number_in(0, kMaxReal, "a number that is not negative"))
      ->group("Optimizer");
  app.add_option("--inner-momentum", options.inner_momentum, "decay of m, for adamw-schedulefree")
      ->check(below_1)
      ->group("Optimizer");
  app.add_option("--eval-interp", options.eval_interp, "what x keeps of itself in a step, for gpa-adamw")
      ->check(below_1)
      ->group("Optimizer");
  app.add_flag("--nesterov", options.nesterov, "Nesterov momentum, for sgd")->group("Optimizer");
  app.add_option("--weight-decay", options.weight_decay,
         "decoupled, taken at y; for sgd added to the gradient (default 0)")
      ->check(number_in(0, kMaxReal, "a number that is not negative"))
      ->group("Optimizer");
  app.add_option(
         "--schedule", options.schedule, "of the learning rate of adamw and sgd, down to 0 at the end")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->capture_default_str()
      ->group("Optimizer");
  app.add_option("--warmup", options.warmup, "steps of linear warmup (default 0)")
      ->check(integer_in(0, kMaxSteps))
      ->group("Optimizer");

  app.add_option("--steps", options.steps, "steps to train for (default: the task's)")
      ->check(integer_in(1, kMaxSteps))
      ->group("Run");
  app.add_option("--batch", options.batch, "samples per step, of all ranks together (default: the task's)")
      ->check(integer_in(1, 1 << 24))
      ->group("Run");
  app.add_option("--evaluate-at", options.evaluate_at,
         "steps after which x is evaluated, separated by commas; 0 is before the first "
         "(default: 13, each 1.4 times the one before, up to the last)")
      ->delimiter(',')
      ->check(integer_in(0, kMaxSteps))
      ->group("Run");
  app.add_option("--seed", options.seed, "of parameters and of the order of the data (default 0)")
      ->check(integer_in(0, std::numeric_limits<int32_t>::max()))
      ->group("Run");
  app.add_option("--threads", options.threads, "per rank (default 1)")
      ->check(integer_in(1, 1024))
      ->group("Run");
  app.add_option("--dtype", options.dtype,
         "of parameters and inputs; float64 to compare numbers of ranks, whose sums differ in their last "
         "digits")
      ->check(CLI::IsMember({"float32", "float64"}))
      ->capture_default_str()
      ->group("Run");
  app.add_option("--out", options.out, "file for the JSON lines instead of standard output")->group("Run");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    result.help = app.help();
    return result;
  } catch (const CLI::ParseError& error) {
    result.problem = error.what();
    return result;
  }
  result.problem = complete(options);
  return result;
}
