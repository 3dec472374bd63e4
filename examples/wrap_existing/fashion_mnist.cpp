#include "fashion_mnist.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <mpi.h>
#include <zlib.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

/// An IDX file (http://yann.lecun.com/exdb/mnist): magic number, sizes as big-endian 32-bit integers, bytes.
at::Tensor read_idx(
    const std::string& folder, const std::string& name, const std::vector<int64_t>& item_sizes) {
  std::string path = folder + "/" + name;
  if (!std::filesystem::exists(path)) path += ".gz";
  // gzopen reads plain files too.
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) throw std::runtime_error("cannot read " + path + ": " + std::strerror(errno));

  const auto read = [&](void* destination, int64_t bytes) {
    if (gzread(file.get(), destination, static_cast<unsigned>(bytes)) != bytes) {
      throw std::runtime_error(path + " is truncated or damaged");
    }
  };
  const auto read_integer = [&] {
    std::array<uint8_t, 4> b;
    read(b.data(), 4);
    return int64_t{b[0]} << 24 | int64_t{b[1]} << 16 | int64_t{b[2]} << 8 | int64_t{b[3]};
  };

  const auto dimensions = static_cast<int64_t>(item_sizes.size()) + 1;
  bool as_expected = read_integer() == (0x0800 | dimensions);  // 0x08: unsigned bytes
  std::vector<int64_t> sizes{as_expected ? read_integer() : 0};
  for (const int64_t size : item_sizes) {
    as_expected = as_expected && read_integer() == size;
    sizes.push_back(size);
  }
  if (!as_expected) throw std::runtime_error(path + " is not the IDX file that its name says");
  auto items = at::empty(sizes, at::kByte);
  read(items.mutable_data_ptr(), items.numel());
  return items;
}

Split load_split(const std::string& folder, const std::string& prefix) {
  // Mean and standard deviation of the training images' pixels.
  constexpr double kMean = 0.2860, kDeviation = 0.3530;
  Split split;
  split.images = read_idx(folder, prefix + "-images-idx3-ubyte", {28, 28})
                     .unsqueeze(1)
                     .to(at::kFloat)
                     .div_(255)
                     .sub_(kMean)
                     .div_(kDeviation);
  split.labels = read_idx(folder, prefix + "-labels-idx1-ubyte", {}).to(at::kLong);
  if (split.labels.numel() != split.images.size(0)) {
    throw std::runtime_error(folder + ": " + prefix + " has " + std::to_string(split.images.size(0)) +
                             " images and " + std::to_string(split.labels.numel()) + " labels");
  }
  return split;
}

}  // namespace

FashionMnist load_fashion_mnist(const std::string& folder) {
  return {load_split(folder, "train"), load_split(folder, "t10k")};
}

Setup set_up(int argc, char** argv) {
  int rank = 0, world_size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size);

  Setup setup;
  std::string help;
  std::string problem = parse_command_line(argc, argv, setup.options, help);
  if (!help.empty()) {
    if (rank == 0) std::cout << help << std::flush;
    setup.exit_code = 0;
    return setup;
  }
  if (problem.empty()) {
    at::set_num_threads(setup.options.threads);
    try {
      setup.data = load_fashion_mnist(setup.options.data);
      const int64_t images = setup.data.training.images.size(0);
      if (setup.options.batch * world_size > images) {
        problem = "--batch " + std::to_string(setup.options.batch) + " on " + std::to_string(world_size) +
                  " ranks is more than the " + std::to_string(images) + " training images";
      }
    } catch (const std::exception& error) {
      problem = error.what();
    }
  }

  int first_with_problem = problem.empty() ? world_size : rank;
  MPI_Allreduce(MPI_IN_PLACE, &first_with_problem, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  if (first_with_problem < world_size) setup.exit_code = 2;
  if (first_with_problem == rank) {
    const std::string program = std::filesystem::path(argv[0]).filename();
    std::cerr << program << ": " << (rank == 0 ? "" : "on rank " + std::to_string(rank) + ": ") << problem
              << "\n"
              << program << " --help lists the options.\n";
  }
  return setup;
}
