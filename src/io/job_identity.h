#pragma once

#include "io/json.h"

#include <cstdint>
#include <string>

namespace zerosched::detail {

/// Which process of which job has written something, for others to find out later whether it still runs.
struct JobIdentity {
  std::string host;
  int64_t pid = 0;
  int64_t started = 0;  ///< of the process, in clock ticks since the machine was booted
  std::string place;    ///< this boot of the machine, and its processes' namespace: pids mean the same there
  std::string job;      ///< as the scheduler calls it, "Slurm job 4242"; empty without one

  /// Of this process.
  static const JobIdentity& own();
};

bool operator==(const JobIdentity& a, const JobIdentity& b);

enum class Life {
  ended,
  runs,
  unknown,  ///< on another machine
};
Life life_of(const JobIdentity& process);

/// "process 123 on host node7 (Slurm job 4242)"
std::string name_of(const JobIdentity& process);

nlohmann::json to_json(const JobIdentity& process);
/// Throws std::runtime_error if something is missing or of another type.
JobIdentity parse_job_identity(const nlohmann::json& value);

}  // namespace zerosched::detail
