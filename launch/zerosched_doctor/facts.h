#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace zerosched {
class Session;
}

namespace doctor {

/// What one rank knows of itself and of its host.
struct Facts {
  int rank = 0;
  int local_rank = 0;
  std::string host;
  std::string zerosched;  ///< version, and a checksum of the library's file
  std::string libtorch;
  std::string mpi;
  std::string cuda;  ///< runtime and driver; empty where no CUDA runtime is loaded, as for the next
  std::string nccl;
  std::string device;      ///< where this rank's model lives
  std::string gpu;         ///< what that GPU calls itself, as no other does; empty on the CPU
  int gpus = 0;            ///< that this rank sees
  int threads = 0;         ///< of LibTorch
  std::vector<int> cores;  ///< that this rank may run on
  int64_t open_files = 0;  ///< limits in bytes or pieces, -1 for none
  int64_t address_space = 0;
  int64_t locked_memory = 0;
  bool infiniband = false;  ///< the host has such a device
  int64_t shm_bytes = 0;    ///< free in /dev/shm
  int64_t pid = 0;
  uint64_t probe = 0;  ///< address of a word in this process that another may try to read
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(Facts, rank, local_rank, host, zerosched, libtorch, mpi, cuda, nccl,
    device, gpu, gpus, threads, cores, open_files, address_space, locked_memory, infiniband, shm_bytes, pid,
    probe)

Facts collect_facts(const zerosched::Session& session);

/// Tries to read another process's memory in the way that MPI moves large messages within a host
/// (cross-memory attach). An empty string if that works, else why not.
std::string read_probe(const Facts& of);

}  // namespace doctor
