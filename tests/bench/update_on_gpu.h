#pragma once

#include "kernels/step_scalars.h"

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>

namespace zerosched::testing {

/// What bench_update_gpu measures: launches of the update one after the other, each on elements of its own, so that no
/// launch finds its data in the cache if all of them together are larger than it.
struct UpdateCase {
  std::string name;
  kernels::Rule rule;
  c10::ScalarType param, grad;
  int64_t numel;  ///< of one launch; a multiple of 8 times `spans`
  int64_t launches = 1;
  int64_t spans = 1;  ///< of one launch, equally long: many, as where gradients stay where autograd made them
  double zero_rows = 0;  ///< which share of rows of 1,024 gradients is 0, as of an embedding, and v there too
  double floor = 0;      ///< the ratio to one large copy below which something is wrong; 0: there is none
};

/// Bytes per second, the algorithm's reads and writes (32 bytes an element for float32 AdamW Schedule-Free), and of copies
/// from device to device that move as many bytes, each counted as read and written.
struct UpdateRates {
  double update = 0;
  double one_copy = 0;  ///< of all bytes in one copy
  double copies = 0;    ///< in as many copies as there are launches
  double seconds = 0;   ///< of one launch
};

int64_t bytes_per_element(const UpdateCase& c);
/// Bytes of GPU memory that measure() allocates at a time, at most.
int64_t bytes_needed(const UpdateCase& c);
/// On the current device.
UpdateRates measure(const UpdateCase& c, int repetitions);

}  // namespace zerosched::testing
