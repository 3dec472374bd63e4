#include "session/launcher.h"

#include "base/check.h"

#include <array>
#include <cstdlib>

namespace zerosched::detail {

namespace {

bool is_set(const char* name) { return std::getenv(name) != nullptr; }

int integer(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

bool started_by_open_mpi() { return is_set("OMPI_COMM_WORLD_SIZE"); }
// Of PMIx, and of PMI as MPICH, Intel's MPI and Cray's speak it.
bool has_process_manager() {
  return is_set("PMIX_RANK") || is_set("PMI_RANK") || is_set("PMI_SIZE") || is_set("PMI_FD");
}

// A launcher that leaves ranks in the environment, whether or not MPI can connect them.
struct Launcher {
  const char* name;
  const char* rank;
  const char* size;  // null: it does not say
  bool speaks_pmix;  // if it is told to
  const char* remedy;
};
constexpr std::array<Launcher, 5> kLaunchers = {{
    {"srun", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", true, "\"srun --mpi=pmix\" or mpirun"},
    {"PALS (aprun, or mpiexec of a Cray)", "PALS_RANKID", nullptr, false,
        "the mpiexec of the MPI that zerosched was built with"},
    {"flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE", true, "\"flux run -o pmi=pmix\" or mpirun"},
    {"jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", true, "mpirun"},
    {"torchrun, or one like it,", "RANK", "WORLD_SIZE", false,
        "launch/run or mpirun, which starts all processes of the job"},
}};

bool has_started_several(const Launcher& launcher) {
  return is_set(launcher.rank) && (launcher.size == nullptr || integer(launcher.size) > 1);
}

void check_not_several() {
  for (const Launcher& launcher : kLaunchers) {
    if (!has_started_several(launcher)) continue;
    std::string found = std::string(launcher.rank) + "=" + std::getenv(launcher.rank);
    if (launcher.size != nullptr)
      found += std::string(" and ") + launcher.size + "=" + std::getenv(launcher.size);
    ZEROSCHED_CHECK(false, "session: ", launcher.name, " has started ",
        launcher.size == nullptr ? std::string("several") : std::to_string(integer(launcher.size)),
        " tasks without a way for MPI to connect them (the environment has ", found,
        ", and nothing of PMIx, PMI or Open MPI); start them with ", launcher.remedy,
        ", or ask for the backend \"self\" if every task is to train alone");
  }
}

}  // namespace

std::string choose_transport(const std::string& requested, bool has_mpi_world) {
  ZEROSCHED_CHECK(requested == "auto" || requested == "self" || requested == "mpi" || requested == "nccl",
      "session: unknown backend \"", requested, "\"; it must be \"auto\", \"self\", \"mpi\" or \"nccl\"");
  if (requested == "self") return requested;
  if (has_mpi_world || started_by_open_mpi() || has_process_manager()) return "mpi";
  check_not_several();
  return requested == "mpi" ? "mpi" : "self";
}

int launched_processes() {
  if (started_by_open_mpi()) return integer("OMPI_COMM_WORLD_SIZE");
  if (is_set("PMI_SIZE")) return integer("PMI_SIZE");
  if (!is_set("PMIX_RANK")) return 0;
  for (const Launcher& launcher : kLaunchers) {
    if (launcher.speaks_pmix && has_started_several(launcher)) return integer(launcher.size);
  }
  return 0;
}

int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (is_set(name)) return integer(name);
  }
  return 0;
}

}  // namespace zerosched::detail
