#pragma once

#include <cstdint>
#include <optional>
#include <string>

/// What --resume means without a folder: the latest in --checkpoint-dir.
inline constexpr const char* kLatestCheckpoint = "latest";

struct Options {
  std::string data;  // empty: random bytes (--synthetic)
  int64_t steps = 500;
  int64_t dim = 128;
  int64_t layers = 4;
  int64_t heads = 4;
  int64_t batch = 16;  // sequences per rank and step
  int64_t seq = 64;    // bytes per sequence
  double dropout = 0;

  std::string optimizer = "adamw-schedulefree";
  double lr = 5e-3;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0.1;
  int64_t warmup_steps = 50;
  std::optional<double> max_grad_norm;
  std::optional<int64_t> bucket_bytes;
  bool overlap_forward = false;
  bool check_ready = false;

  std::string dtype = "float32";
  std::string device = "auto";
  std::string comm = "auto";
  int threads = 1;  // per rank
  uint64_t seed = 0;
  double timeout = 600;  // seconds

  std::string checkpoint_dir;    // empty: none
  int64_t checkpoint_every = 0;  // steps; 0: only at the end and when stopped by a signal
  int64_t keep_checkpoints = 0;  // 0: all
  std::string resume;            // a checkpoint's folder, kLatestCheckpoint, or empty: start anew
  std::string export_path;       // empty: none

  int64_t eval_every = 0;  // 0: only after the last step
  int64_t eval_batches = 16;
  int64_t sample = 0;   // bytes to generate at the end
  std::string metrics;  // empty: none
  std::string progress = "auto";
  bool json = false;
};

/// What a command line asks for: to run with `options`, to print `help`, or neither because of `problem`.
struct CommandLine {
  Options options;
  std::string help;
  std::string problem;
};

/// Pure: prints nothing and does not exit, because every rank parses and only one may speak.
CommandLine parse_command_line(int argc, char** argv);
