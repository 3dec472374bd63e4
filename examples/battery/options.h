#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

struct Options {
  std::string task;
  std::string data;  // folder with the arrays

  std::string optimizer;
  double lr = 0;
  // Nothing: the optimizer's own default.
  std::optional<double> beta1, beta2, momentum, refinement, inner_momentum, eval_interp;
  bool nesterov = false;
  double weight_decay = 0;
  std::string schedule = "constant";
  int64_t warmup = 0;  // steps

  int64_t steps = 0;
  int64_t batch = 0;                 // of all ranks together
  std::vector<int64_t> evaluate_at;  // steps, ascending; 0 is before the first
  uint64_t seed = 0;
  int threads = 1;                // per rank
  std::string dtype = "float32";  // of parameters and inputs
  std::string out;                // file for the JSON lines; empty: standard output
};

/// What a command line asks for: to run with `options`, to print `help`, or neither because of `problem`.
struct CommandLine {
  Options options;
  std::string help;
  std::string problem;
};

/// Pure: prints nothing and does not exit, because every rank parses and only one may speak.
CommandLine parse_command_line(int argc, char** argv);
