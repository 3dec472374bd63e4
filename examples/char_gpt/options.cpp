#include "options.h"

#include "optimizers.h"

#include <zerosched/optimizers.h>

#include <CLI/CLI.hpp>

#include <cmath>
#include <limits>

namespace {

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
  const auto description = std::to_string(low) + " to " + std::to_string(high);
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        int64_t value = 0;
        if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return {};
        return "got " + text + ", expected an integer from " + description;
      },
      description);
}

}  // namespace

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine result;
  Options& options = result.options;
  CLI::App app(
      "Trains a decoder-only transformer on the bytes of a text, with a sharded Schedule-Free optimizer.\n"
      "Start it with mpirun or srun; alone it is a world of one rank.",
      "char_gpt");
  app.option_defaults()->always_capture_default();

  constexpr int64_t kMaxSize = 1 << 16;
  constexpr int64_t kMaxSteps = int64_t{1} << 40;
  constexpr double kMaxReal = std::numeric_limits<double>::max();
  const auto positive = number_in(std::numeric_limits<double>::min(), kMaxReal, "a positive number");
  const auto not_negative = number_in(0, kMaxReal, "a number that is not negative");
  const auto fraction = number_in(0, 1, "a number from 0 to 1");

  bool synthetic = false;
  auto* data = app.add_option("--data", options.data, "text to train on; its last tenth is held out")
                   ->check(CLI::ExistingFile)
                   ->group("Data");
  app.add_flag("--synthetic", synthetic, "random bytes instead of a text, for timing")
      ->excludes(data)
      ->group("Data");
  app.add_option("--batch", options.batch, "sequences per rank and step")
      ->check(integer_in(1, kMaxSize))
      ->group("Data");
  app.add_option("--seq", options.seq, "bytes per sequence")->check(integer_in(1, kMaxSize))->group("Data");

  app.add_option("--dim", options.dim, "width")->check(integer_in(1, kMaxSize))->group("Model");
  app.add_option("--layers", options.layers, "blocks")->check(integer_in(1, kMaxSize))->group("Model");
  app.add_option("--heads", options.heads, "attention heads per block")
      ->check(integer_in(1, kMaxSize))
      ->group("Model");
  app.add_option("--dtype", options.dtype, "type of the parameters")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->group("Model");

  app.add_option("--dropout", options.dropout, "of attention and residuals")
      ->check(number_in(0, std::nextafter(1.0, 0.0), "a number from 0 to below 1"))
      ->group("Model");

  app.add_option(
         "--optimizer", options.optimizer, "algorithm: " + CLI::detail::join(zerosched::optimizer_names()))
      ->check(CLI::Validator([](const std::string& name) { return problem_with_optimizer(name); }, ""))
      ->group("Optimizer");
  app.add_option("--steps", options.steps, "optimizer steps")
      ->check(integer_in(1, kMaxSteps))
      ->group("Optimizer");
  app.add_option("--lr", options.lr, "learning rate")->check(positive)->group("Optimizer");
  app.add_option("--beta1", options.beta1,
         "weight of x in y; decay of m for adamw, gpa-adamw, adamw-schedulefree-plus; for sgd momentum")
      ->check(fraction)
      ->group("Optimizer");
  app.add_option("--beta2", options.beta2, "decay of v")
      ->check(number_in(0, std::nextafter(1.0, 0.0), "a number from 0 to below 1"))
      ->group("Optimizer");
  app.add_option("--weight-decay", options.weight_decay,
         "decoupled, taken at y, for gpa-adamw at z; for sgd added to the gradient")
      ->check(not_negative)
      ->group("Optimizer");
  app.add_option("--warmup-steps", options.warmup_steps, "steps of linear warmup")
      ->check(integer_in(0, kMaxSteps))
      ->group("Optimizer");
  app.add_option("--max-grad-norm", options.max_grad_norm, "clip the global gradient norm to this")
      ->check(positive)
      ->group("Optimizer");
  app.add_option("--bucket-bytes", options.bucket_bytes, "bytes of parameters per bucket")
      ->check(integer_in(1, int64_t{1} << 40))
      ->group("Optimizer");
  auto* overlap_forward = app.add_flag("--overlap-forward", options.overlap_forward,
                                 "begin the next forward while the parameters it uses later arrive")
                              ->group("Optimizer");
  app.add_flag("--check-ready", options.check_ready,
         "find parameters that forward uses before they are there: they are NaN until then")
      ->needs(overlap_forward)
      ->group("Optimizer");

  app.add_option("--device", options.device,
         "where the model lives; auto: the rank's GPU, or the CPU if there is none")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->group("Run");
  app.add_option("--comm", options.comm,
         "what carries gradients; auto: nccl if every rank has a GPU of its own, mpi for several ranks "
         "otherwise")
      ->check(CLI::IsMember({"auto", "nccl", "mpi", "self"}))
      ->group("Run");
  app.add_option("--threads", options.threads, "threads per rank")->check(integer_in(1, 1024))->group("Run");
  app.add_option("--seed", options.seed, "of parameters, batches and samples")
      ->check(integer_in(0, std::numeric_limits<int32_t>::max()))
      ->group("Run");
  app.add_option("--timeout", options.timeout, "seconds after which a stuck collective is given up")
      ->check(positive)
      ->group("Run");
  app.add_option("--checkpoint-dir", options.checkpoint_dir,
         "folder for checkpoints: one at the end, and one when SIGUSR1 or SIGTERM stops the job with exit "
         "code 75")
      ->group("Checkpoints");
  app.add_option(
         "--checkpoint-every", options.checkpoint_every, "steps between checkpoints (0: none between)")
      ->check(integer_in(0, kMaxSteps))
      ->group("Checkpoints");
  app.add_option("--keep-checkpoints", options.keep_checkpoints, "delete older ones (0: keep all)")
      ->check(integer_in(0, kMaxSteps))
      ->group("Checkpoints");
  auto* resume =
      app.add_option("--resume", options.resume,
             "checkpoint to go on from; without a value the latest in --checkpoint-dir, if there is one")
          ->expected(0, 1)
          ->group("Checkpoints");
  app.add_option("--export", options.export_path, "safetensors file for x, the weights to ship")
      ->group("Checkpoints");
  app.add_option("--eval-every", options.eval_every, "steps between evaluations (0: only at the end)")
      ->check(integer_in(0, kMaxSteps))
      ->group("Output");
  app.add_option("--eval-batches", options.eval_batches, "held-out batches per rank and evaluation")
      ->check(integer_in(1, kMaxSteps))
      ->group("Output");
  app.add_option("--sample", options.sample, "bytes to generate at the end")
      ->check(integer_in(0, int64_t{1} << 20))
      ->group("Output");
  app.add_option("--metrics", options.metrics, "file for metrics, one JSON object per line")->group("Output");
  app.add_option("--progress", options.progress,
         "live (one line, rewritten), lines, off, or auto: live on a terminal; "
         "under mpirun the ranks cannot see one")
      ->check(CLI::IsMember({"auto", "live", "lines", "off"}))
      ->group("Output");
  app.add_flag("--json", options.json, "end with one JSON object on standard output")->group("Output");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    result.help = app.help();
    return result;
  } catch (const CLI::ParseError& error) {
    result.problem = error.what();
    return result;
  }
  if (resume->count() > 0 && options.resume.empty()) options.resume = kLatestCheckpoint;
  const bool needs_dir =
      options.resume == kLatestCheckpoint || options.checkpoint_every > 0 || options.keep_checkpoints > 0;
  if (needs_dir && options.checkpoint_dir.empty()) {
    result.problem =
        "--checkpoint-dir DIR is required with --checkpoint-every, --keep-checkpoints and --resume without "
        "a folder";
  } else if (options.data.empty() && !synthetic) {
    result.problem = "--data FILE is required (or --synthetic, for random bytes)";
  } else if (options.dim % options.heads != 0) {
    result.problem =
        "--heads " + std::to_string(options.heads) + " does not divide --dim " + std::to_string(options.dim);
  }
  return result;
}
