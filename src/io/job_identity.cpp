#include "io/job_identity.h"

#include <array>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>

#include <signal.h>
#include <unistd.h>

namespace zerosched::detail {

namespace {

struct Scheduler {
  const char* variable;
  const char* name;
};
constexpr std::array<Scheduler, 5> kSchedulers = {{{"SLURM_JOB_ID", "Slurm"}, {"PBS_JOBID", "PBS"},
    {"LSB_JOBID", "LSF"}, {"FLUX_JOB_ID", "Flux"}, {"COBALT_JOBID", "Cobalt"}}};

struct ProcessStatus {
  char state;       ///< Z: has ended, and nobody has asked yet how
  int64_t started;  ///< in clock ticks since the machine was booted
};

// /proc/PID/stat, see proc(5): the name, in parentheses, may hold anything; the state follows, the start is field 22.
std::optional<ProcessStatus> status_of(int64_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  ProcessStatus status{};
  std::string skipped;
  fields >> status.state;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> status.started;
  if (!fields) return std::nullopt;
  return status;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

// Empty if that is not known.
std::string place_of_pids() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::array<char, 256> names{};
  const ssize_t length = ::readlink("/proc/self/ns/pid", names.data(), names.size() - 1);
  return boot.empty() || length <= 0 ? std::string() : boot + '/' + names.data();
}

JobIdentity identify() {
  JobIdentity own;
  own.host = host_name();
  own.pid = ::getpid();
  if (const auto status = status_of(own.pid)) own.started = status->started;
  own.place = place_of_pids();
  for (const Scheduler& scheduler : kSchedulers) {
    const char* id = std::getenv(scheduler.variable);
    if (id == nullptr || *id == '\0') continue;
    own.job = std::string(scheduler.name) + " job " + id;
    break;
  }
  return own;
}

}  // namespace

const JobIdentity& JobIdentity::own() {
  // Anew in the child of a fork.
  static thread_local JobIdentity identity;
  if (identity.pid != ::getpid()) identity = identify();
  return identity;
}

bool operator==(const JobIdentity& a, const JobIdentity& b) {
  return std::tie(a.host, a.pid, a.started, a.place) == std::tie(b.host, b.pid, b.started, b.place);
}

Life life_of(const JobIdentity& process) {
  if (process.place.empty() || process.place != JobIdentity::own().place) return Life::unknown;
  if (const auto status = status_of(process.pid)) {
    return status->started == process.started && status->state != 'Z' ? Life::runs : Life::ended;
  }
  // /proc may hide the processes of other users.
  return ::kill(static_cast<pid_t>(process.pid), 0) == 0 || errno == EPERM ? Life::unknown : Life::ended;
}

std::string name_of(const JobIdentity& process) {
  return "process " + std::to_string(process.pid) + " on host " + process.host +
         (process.job.empty() ? "" : " (" + process.job + ")");
}

nlohmann::json to_json(const JobIdentity& process) {
  return {{"host", process.host}, {"pid", process.pid}, {"started", process.started},
      {"place", process.place}, {"job", process.job}};
}

JobIdentity parse_job_identity(const nlohmann::json& value) {
  const auto text = [&](const char* name) {
    const auto found = value.is_object() ? value.find(name) : value.end();
    if (!value.is_object() || found == value.end() || !found->is_string()) {
      throw std::runtime_error(std::string("'") + name + "' of its job is not text");
    }
    return found->get<std::string>();
  };
  const auto number = [&](const char* name) {
    const auto found = value.find(name);
    if (found == value.end() || !found->is_number_integer()) {
      throw std::runtime_error(std::string("'") + name + "' of its job is not an integer");
    }
    return found->get<int64_t>();
  };
  JobIdentity process;
  process.host = text("host");
  process.place = text("place");
  process.job = text("job");
  process.pid = number("pid");
  process.started = number("started");
  return process;
}

}  // namespace zerosched::detail
