#include "layout/layout.h"

#include "base/check.h"
#include "kernels/gradient_dtypes.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

namespace zerosched::detail {
namespace {

// One cache line pair: what AVX-512 streams, 16-byte GPU accesses and NCCL all like.
constexpr int64_t kAlignmentBytes = 128;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

c10::ScalarType reduce_dtype_for(const ParameterSpec& parameter, c10::ScalarType requested) {
  if (requested == c10::ScalarType::Undefined) {
    return parameter.dtype == c10::ScalarType::Half ? c10::ScalarType::Float : parameter.dtype;
  }
  const char* other = parameter.dtype == c10::ScalarType::Double  ? ""
                      : parameter.dtype == c10::ScalarType::Float ? " or BFloat16"
                                                                  : " or Float";
  ZEROSCHED_CHECK(kernels::can_update(parameter.dtype, requested), "ShardingOptions::reduce_dtype is ",
      c10::toString(requested), ", but parameter '", parameter.name, "' is ", c10::toString(parameter.dtype),
      ": its gradient can be reduced in ", c10::toString(parameter.dtype), other, " only.");
  return requested;
}

// Elements between aligned places, in the parameter's dtype and in the one its gradient travels in.
int64_t alignment_numel(const Bucket& bucket) {
  const auto smallest = std::min(c10::elementSize(bucket.dtype), c10::elementSize(bucket.reduce_dtype));
  return kAlignmentBytes / static_cast<int64_t>(smallest);
}

void cut_into_slices(Bucket& bucket, int64_t world_size) {
  const int64_t alignment = alignment_numel(bucket);
  const Slot& last = bucket.slots.back();
  bucket.shard_numel = round_up(last.offset + last.numel, alignment * world_size) / world_size;
  std::vector<int64_t> flags(static_cast<size_t>(world_size), 0);
  for (size_t s = 0; s < bucket.slots.size(); ++s) {
    const Slot& slot = bucket.slots[s];
    for (int64_t done = 0; done < slot.numel;) {
      const int64_t begin = slot.offset + done;
      Piece piece;
      piece.slot = static_cast<int64_t>(s);
      piece.slot_begin = done;
      piece.slice = begin / bucket.shard_numel;
      piece.slice_begin = begin % bucket.shard_numel;
      piece.numel = std::min(slot.numel - done, bucket.shard_numel - piece.slice_begin);
      piece.flag = flags[static_cast<size_t>(piece.slice)]++;
      done += piece.numel;
      bucket.pieces.push_back(piece);
    }
  }
  bucket.flag_numel = round_up(*std::max_element(flags.begin(), flags.end()) + 2, alignment);
}

}  // namespace

int64_t ParameterSpec::numel() const {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

int64_t default_bucket_bytes(Wire wire, int64_t world_size) {
  constexpr int64_t kMebibyte = int64_t{1} << 20;
  switch (wire) {
    case Wire::host:
      break;
    case Wire::network:
      return std::clamp(world_size * kMebibyte / 16, 8 * kMebibyte, 25 * kMebibyte);
    case Wire::nccl:
      return std::clamp(4 * world_size, int64_t{100}, int64_t{400}) * kMebibyte;
  }
  return 25 * kMebibyte;
}

int64_t Layout::shard_numel() const {
  int64_t total = 0;
  for (const Bucket& bucket : buckets) total += bucket.shard_numel;
  return total;
}

Layout make_layout(
    const std::vector<ParameterSpec>& parameters, const LayoutOptions& options, int64_t world_size) {
  ZEROSCHED_CHECK(options.bucket_bytes > 0, "ShardingOptions::bucket_bytes must be positive, got ",
      options.bucket_bytes, ".");
  ZEROSCHED_CHECK(options.first_bucket_bytes > 0,
      "ShardingOptions::first_bucket_bytes must be positive, got ", options.first_bucket_bytes, ".");

  Layout layout;
  layout.world_size = world_size;
  layout.place_of.resize(parameters.size());
  // The bucket that is being filled, for each (group, dtype), and how many that sequence has had.
  struct Sequence {
    int64_t open = -1;
    int64_t count = 0;
  };
  std::map<std::pair<int64_t, c10::ScalarType>, Sequence> sequences;

  for (int64_t p = static_cast<int64_t>(parameters.size()) - 1; p >= 0; --p) {
    const ParameterSpec& parameter = parameters[static_cast<size_t>(p)];
    const int64_t numel = parameter.numel();
    const c10::ScalarType reduce_dtype = reduce_dtype_for(parameter, options.reduce_dtype);
    if (numel == 0) continue;
    const int64_t element_bytes = static_cast<int64_t>(c10::elementSize(parameter.dtype));
    Sequence& sequence = sequences[{parameter.group, parameter.dtype}];
    int64_t offset = 0;
    if (sequence.open >= 0) {
      const Bucket& bucket = layout.buckets[static_cast<size_t>(sequence.open)];
      const int64_t limit_bytes = sequence.count == 1 ? options.first_bucket_bytes : options.bucket_bytes;
      const Slot& last = bucket.slots.back();
      offset = round_up(last.offset + last.numel, alignment_numel(bucket));
      if ((offset + numel) * element_bytes > limit_bytes) sequence.open = -1;
    }
    if (sequence.open < 0) {
      offset = 0;
      sequence.open = static_cast<int64_t>(layout.buckets.size());
      ++sequence.count;
      Bucket bucket;
      bucket.group = parameter.group;
      bucket.dtype = parameter.dtype;
      bucket.reduce_dtype = reduce_dtype;
      layout.buckets.push_back(std::move(bucket));
    }
    Bucket& bucket = layout.buckets[static_cast<size_t>(sequence.open)];
    layout.place_of[static_cast<size_t>(p)] = {sequence.open, static_cast<int64_t>(bucket.slots.size())};
    bucket.slots.push_back({p, offset, numel});
  }
  for (Bucket& bucket : layout.buckets) cut_into_slices(bucket, world_size);
  return layout;
}

}  // namespace zerosched::detail
