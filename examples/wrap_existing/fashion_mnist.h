#pragma once

#include "options.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

struct Split {
  at::Tensor images;  ///< [n, 1, 28, 28] float32, zero mean and unit variance over the training images
  at::Tensor labels;  ///< [n] int64
};

struct FashionMnist {
  Split training, test;
};

/// Throws std::runtime_error if a file is missing or is not what its name says.
FashionMnist load_fashion_mnist(const std::string& folder);

/// What a trainer needs to start, or with which code to end.
struct Setup {
  Options options;
  FashionMnist data;
  std::optional<int> exit_code;
};

/// Parses the command line, loads the images, and sets threads. If that fails on any rank, the first such
/// rank says why and all end with exit code 2. Collective over MPI_COMM_WORLD.
Setup set_up(int argc, char** argv);
