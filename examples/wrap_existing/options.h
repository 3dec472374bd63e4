#pragma once

#include <cstdint>
#include <string>

struct Options {
  std::string data = "/usr/share/datasets/fashion-mnist";  // where Debian's dataset-fashion-mnist puts it
  int64_t epochs = 2;
  int64_t steps = 0;   // at most so many; 0: all of the epochs
  int64_t batch = 32;  // images per rank and step
  double lr = 2e-3;
  int threads = 1;  // per rank
  uint64_t seed = 0;
  bool json = false;
};

/// Pure: prints nothing and does not exit, because every rank parses and only one may speak.
/// Returns what is wrong with the command line, or an empty string; `help` is set if it was asked for.
std::string parse_command_line(int argc, char** argv, Options& options, std::string& help);
