#include "session/launcher.h"

#include <c10/util/Exception.h>

#include <cstdlib>

namespace zerosched::detail {

namespace {

bool is_set(const char* name) { return std::getenv(name) != nullptr; }

int integer(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

bool started_by_open_mpi() { return is_set("OMPI_COMM_WORLD_SIZE"); }
bool has_process_manager() { return is_set("PMIX_RANK") || is_set("PMI_RANK") || is_set("PMI_SIZE"); }

}  // namespace

std::string choose_transport(const std::string& requested) {
  TORCH_CHECK(requested == "auto" || requested == "self" || requested == "mpi" || requested == "nccl",
      "session: unknown backend \"", requested, "\"; it must be \"auto\", \"self\", \"mpi\" or \"nccl\"");
  if (requested == "self") return requested;
  if (!started_by_open_mpi() && !has_process_manager()) {
    // Every task would be a world of its own and train alone, without an error.
    const int tasks = integer("SLURM_STEP_NUM_TASKS");
    TORCH_CHECK(!(is_set("SLURM_STEP_ID") && tasks > 1), "session: srun has started ", tasks,
        " tasks without a way for MPI to connect them; start them with \"srun --mpi=pmix\" or with mpirun, "
        "or "
        "ask for the backend \"self\" if every task is to train alone");
    return requested == "mpi" ? "mpi" : "self";
  }
  return "mpi";
}

int launched_processes() {
  if (started_by_open_mpi()) return integer("OMPI_COMM_WORLD_SIZE");
  if (is_set("PMI_SIZE")) return integer("PMI_SIZE");
  if (is_set("PMIX_RANK") && is_set("SLURM_STEP_ID")) return integer("SLURM_STEP_NUM_TASKS");
  return 0;
}

int launched_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (is_set(name)) return integer(name);
  }
  return 0;
}

}  // namespace zerosched::detail
