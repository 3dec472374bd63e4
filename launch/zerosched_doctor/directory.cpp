#include "directory.h"

#include "gather.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <thread>

namespace doctor {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kBytes = 16 << 20;               // per rank: enough to see the disk's rate, soon written
constexpr std::chrono::seconds kSecondsToShow{5};  // NFS may hold on to what it knew of a folder for a while

/// Throws with what failed and why.
void check(bool good, const char* what) {
  if (!good) throw std::runtime_error(std::string(what) + ": " + std::strerror(errno));
}

class File {
 public:
  File(const std::string& path, int flags) : descriptor_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    check(descriptor_ >= 0, "open");
  }
  ~File() { close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(const std::string& bytes) const {
    for (size_t done = 0; done < bytes.size();) {
      const auto written = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
      check(written >= 0, "write");
      done += static_cast<size_t>(written);
    }
  }
  void sync() const { check(fsync(descriptor_) == 0, "fsync"); }

 private:
  int descriptor_;
};

void write_synced(const std::string& folder, const std::string& path, const std::string& bytes) {
  const std::string part = path + ".part";
  try {
    {
      const File file(part, O_WRONLY | O_CREAT | O_TRUNC);
      file.write(bytes);
      file.sync();
    }
    check(std::rename(part.c_str(), path.c_str()) == 0, "rename");
    File(folder, O_RDONLY | O_DIRECTORY).sync();
  } catch (...) {
    unlink(part.c_str());
    throw;
  }
}

std::string read_all(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

DirectoryUse use_directory(zerosched::Communicator& communicator, const std::string& path) {
  // Names and contents of this run only: two doctors may look at one folder.
  const auto stamp = std::to_string(Clock::now().time_since_epoch().count());
  const auto run = gather(communicator, stamp).front().get<std::string>();
  const auto file_of = [&](int rank) {
    return path + "/.zerosched_doctor." + run + "." + std::to_string(rank);
  };
  const auto bytes_of = [&](int rank) {
    return run + " " + std::to_string(rank) + " " + std::string(static_cast<size_t>(kBytes), 'x');
  };

  DirectoryUse use;
  use.written_bytes = kBytes;
  const auto start = Clock::now();
  try {
    write_synced(path, file_of(communicator.rank()), bytes_of(communicator.rank()));
  } catch (const std::exception& error) {
    use.write_error = error.what();
  }
  use.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  struct statvfs status {};
  if (statvfs(path.c_str(), &status) == 0) {
    use.free_bytes = static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
  }

  // If rank 0 could not write, there is nothing to look for, and its own error says enough.
  const bool written = gather(communicator, use.write_error.empty()).front().get<bool>();
  if (written && use.write_error.empty()) {
    const auto deadline = Clock::now() + kSecondsToShow;
    while (access(file_of(0).c_str(), R_OK) != 0 && Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    if (access(file_of(0).c_str(), R_OK) != 0) {
      use.read_error = std::strerror(errno);
    } else if (read_all(file_of(0)) != bytes_of(0)) {
      use.read_error = "the contents differ";
    }
  }
  communicator.barrier({"checkpoint folder"})->wait();
  unlink(file_of(communicator.rank()).c_str());
  return use;
}

}  // namespace doctor
