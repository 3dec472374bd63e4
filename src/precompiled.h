// Precompiled for the library's own translation units, most of which include these: parsing LibTorch's headers is most
// of what compiling them costs. Files include what they use all the same.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>
