// Precompiled once for all tests: parsing LibTorch's headers is most of what compiling them costs. None of zerosched's
// own is here, so that an edit of one does not make the whole anew. Files include what they use all the same.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>
