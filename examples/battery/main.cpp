// Trains one model of the battery with one optimizer, on the ranks that mpirun or srun started.

#include "options.h"
#include "task.h"
#include "train.h"

#include <zerosched/session.h>

#include <ATen/Parallel.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

/// What an exception says, without LibTorch's stack trace.
std::string message_of(const std::exception& error) {
  const auto* libtorch = dynamic_cast<const c10::Error*>(&error);
  return libtorch != nullptr ? libtorch->what_without_backtrace() : error.what();
}

/// False if any rank has a problem, which the first such rank prints for all. Collective.
bool every_rank_is_ready(const zerosched::Session& session, const std::string& problem) {
  const auto has_problem = torch::zeros({session.world_size()}, torch::kInt);
  if (!problem.empty()) has_problem[session.rank()] = 1;
  session.communicator()->all_reduce(has_problem)->wait();
  if (has_problem.sum().item<int>() == 0) return true;
  if (has_problem.argmax().item<int64_t>() == session.rank()) {
    const bool everywhere = has_problem.sum().item<int>() == session.world_size();
    std::cerr << "battery: " << (everywhere ? "" : "on rank " + std::to_string(session.rank()) + ": ")
              << problem << "\nbattery --help lists the options.\n";
  }
  return false;
}

/// JSON lines to a file or standard output, flushed line by line; nothing if this is not rank 0.
class Lines {
 public:
  Lines(const zerosched::Session& session, const std::string& path)
      : path_(path), speaks_(session.rank() == 0) {
    if (!speaks_ || path.empty()) return;
    file_.open(path);
    if (!file_) throw std::runtime_error("cannot write --out " + path + ": " + std::strerror(errno));
  }

  void write(const nlohmann::ordered_json& line) {
    if (!speaks_) return;
    auto& stream = path_.empty() ? static_cast<std::ostream&>(std::cout) : file_;
    stream << line << std::endl;
    if (!stream) throw std::runtime_error("cannot write --out " + path_ + ": " + std::strerror(errno));
  }

 private:
  std::string path_;
  bool speaks_;
  std::ofstream file_;
};

int run(zerosched::Session& session, const CommandLine& line) {
  if (!line.help.empty()) {
    if (session.rank() == 0) std::cout << line.help;
    return 0;
  }
  const Options& options = line.options;
  std::string problem = line.problem;
  std::unique_ptr<Task> task;
  std::unique_ptr<Lines> lines;
  if (problem.empty()) {
    try {
      at::set_num_threads(options.threads);
      torch::manual_seed(options.seed);
      torch::set_default_dtype(
          c10::scalarTypeToTypeMeta(options.dtype == "float64" ? at::kDouble : at::kFloat));
      task = make_task(options.task, options.data, session, options.batch);
      lines = std::make_unique<Lines>(session, options.out);
    } catch (const std::exception& error) {
      problem = message_of(error);
    }
  }
  if (!every_rank_is_ready(session, problem)) return 2;
  try {
    train(session, options, *task, [&](const auto& object) { lines->write(object); });
  } catch (const std::exception& error) {
    session.abort(message_of(error));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const CommandLine line = parse_command_line(argc, argv);
  zerosched::Session session(argc, argv, zerosched::SessionOptions().device(at::kCPU));
  return run(session, line);
}
