#pragma once

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/kernels.h"
#include "kernels/ranges.h"
#include "layout/layout.h"

#include <cstdint>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>

// Buckets to pack, in the shim and on a GPU alike, and what they become by loops over the pieces of their layout.
namespace zerosched::kernels::testing {

struct PackCase {
  c10::ScalarType dtype;         ///< of the bucket's buffer
  c10::ScalarType source_dtype;  ///< of every gradient but, with `mixed`, each third, which has the buffer's
  bool mixed;
  std::vector<int64_t> sizes;  ///< of the parameters, the last of which is the bucket's first slot
  int64_t world_size;
  double weight;
  int64_t report_numel;  ///< a multiple of 128 bytes
  bool some_missing;

  std::string describe() const {
    return std::string(c10::toString(source_dtype)) + (mixed ? " and others" : "") + " to " +
           c10::toString(dtype) + ", " + std::to_string(sizes.size()) + " slots, " +
           std::to_string(world_size) + " ranks, weight " + std::to_string(weight) + ", report " +
           std::to_string(report_numel) + (some_missing ? ", some missing" : "");
  }
};

/// Of memory on a device, in its order.
template <typename Memory>
std::vector<const void*> addresses_of(const std::deque<Memory>& all) {
  std::vector<const void*> addresses;
  for (const Memory& memory : all) addresses.push_back(memory.data());
  return addresses;
}

class PackData {
 public:
  explicit PackData(const PackCase& c, uint32_t seed = 1)
      : report(c.dtype, c.report_numel), case_(c), bucket_(make_bucket(c)) {
    std::mt19937 generator(seed);
    for (size_t s = 0; s < bucket_.slots.size(); ++s) {
      const bool own_dtype = c.mixed && s % 3 == 2;
      gradients.emplace_back(own_dtype ? c.dtype : c.source_dtype, bucket_.slots[s].numel);
      fill_normal(gradients.back(), generator, 1.0);
    }
    fill_normal(report, generator, 1.0);
  }

  std::vector<Array> gradients;  ///< by slot, also of those that are missing
  Array report;

  bool has_gradient(int64_t slot) const { return !case_.some_missing || slot % 4 != 1; }
  int64_t buffer_numel() const { return case_.world_size * slice_numel(); }

  /// The gradients, each in memory of its own, at an offset in elements.
  template <typename Memory>
  std::deque<Memory> upload(size_t offset) const {
    std::deque<Memory> all;
    for (const Array& gradient : gradients)
      all.emplace_back(gradient, offset * c10::elementSize(gradient.dtype()));
    return all;
  }

  /// `addresses`: of the gradients on the device.
  std::vector<cuda::PackSource> sources(const std::vector<const void*>& addresses) const {
    std::vector<cuda::PackSource> all;
    for (size_t s = 0; s < bucket_.slots.size(); ++s) {
      const detail::Slot& slot = bucket_.slots[s];
      all.push_back({has_gradient(static_cast<int64_t>(s)) ? addresses[s] : nullptr, slot.offset, slot.numel,
          gradients[s].dtype()});
    }
    return all;
  }
  cuda::PackBucket bucket(void* buffer, const void* device_report) const {
    return {buffer, case_.world_size, bucket_.shard_numel, bucket_.flag_numel, slice_numel(), device_report,
        case_.weight};
  }

  Array packed() {
    Array buffer(case_.dtype, buffer_numel());
    for (int64_t i = 0; i < buffer.numel(); ++i) buffer.set(i, 0);
    for (const detail::Piece& piece : bucket_.pieces) {
      if (!has_gradient(piece.slot)) continue;
      const int64_t slice = piece.slice * slice_numel();
      Array& gradient = gradients[static_cast<size_t>(piece.slot)];
      copy_gradient(case_.dtype, at(buffer, slice + piece.slice_begin), gradient.dtype(),
          at(gradient, piece.slot_begin), piece.numel, case_.weight);
      buffer.set(slice + bucket_.shard_numel + piece.flag, 1);
    }
    for (int64_t s = 0; s < case_.world_size; ++s) {
      const int64_t reports = s * slice_numel() + bucket_.gradient_slice_numel();
      std::memcpy(at(buffer, reports), report.data(), report.byte_count());
    }
    return buffer;
  }

 private:
  static detail::Bucket make_bucket(const PackCase& c) {
    // A parameter's own dtype is as narrow as what its gradient can be: 16 bits, where one of the two is.
    const auto dtype =
        c10::elementSize(c.dtype) < c10::elementSize(c.source_dtype) ? c.dtype : c.source_dtype;
    std::vector<detail::ParameterSpec> parameters;
    for (const int64_t size : c.sizes) parameters.push_back({"p", {size}, {1}, dtype, 0});
    const int64_t everything = int64_t{1} << 50;
    return detail::make_layout(parameters, {everything, everything, c.dtype}, c.world_size).buckets.at(0);
  }
  static void* at(Array& array, int64_t index) {
    return static_cast<char*>(array.data()) + index * static_cast<int64_t>(c10::elementSize(array.dtype()));
  }
  int64_t slice_numel() const { return bucket_.gradient_slice_numel() + case_.report_numel; }

  PackCase case_;
  detail::Bucket bucket_;
};

/// Every pair of dtypes, around the sizes of packs and of tiles, cut and uncut.
inline std::vector<PackCase> pack_cases() {
  using c10::ScalarType;
  const std::vector<std::pair<ScalarType, ScalarType>> dtypes = {{ScalarType::Float, ScalarType::Float},
      {ScalarType::Double, ScalarType::Double}, {ScalarType::BFloat16, ScalarType::BFloat16},
      {ScalarType::Half, ScalarType::Half}, {ScalarType::Float, ScalarType::BFloat16},
      {ScalarType::Float, ScalarType::Half}, {ScalarType::BFloat16, ScalarType::Float},
      {ScalarType::Half, ScalarType::Float}};
  const std::vector<int64_t> some = {
      1, 5000, 32, 31, 33, 64, 1024, 7, 2500, 128, 127, 4097, 3, 8, 16, 17, 700};
  std::vector<PackCase> cases;
  for (const auto& [dtype, source] : dtypes) {
    for (const double weight : {1.0, 3.0, 0.5}) {
      for (const int64_t ranks : {1, 3, 64}) {
        const bool with_report = ranks != 1;
        cases.push_back(
            {dtype, source, dtype != source, some, ranks, weight, with_report ? 128 : 0, ranks != 3});
      }
    }
  }
  const std::vector<int64_t> one_huge = {100'003};
  cases.push_back({ScalarType::Float, ScalarType::Float, false, one_huge, 1, 1, 0, false});
  cases.push_back({ScalarType::Float, ScalarType::BFloat16, false, one_huge, 7, 0.5, 64, false});
  // Slices of less than a slot, and of less than what a pack would be without alignment.
  cases.push_back({ScalarType::BFloat16, ScalarType::BFloat16, false, {1, 1, 5}, 512, 1, 64, true});
  return cases;
}

/// What one launch cannot be told: slices that end in the first launch, in the second and in both.
inline std::vector<PackCase> many_slots() {
  using c10::ScalarType;
  std::vector<PackCase> cases;
  for (const int64_t count : {129, 1280, 1281, 2 * 1280 + 100}) {
    std::vector<int64_t> sizes;
    for (int64_t s = 0; s < count; ++s) sizes.push_back(s % 50 == 3 ? 777 : 1 + s % 40);
    for (const int64_t ranks : {1, 2, 300}) {
      cases.push_back({ScalarType::Float, ScalarType::BFloat16, true, sizes, ranks, 0.5, 64, true});
    }
  }
  // More than two launches have a part of the second slice.
  std::vector<int64_t> tiny(4 * 1280, 2);
  tiny.front() = 200'000;
  cases.push_back({ScalarType::Float, ScalarType::Float, false, tiny, 2, 1, 0, true});
  return cases;
}

}  // namespace zerosched::kernels::testing
