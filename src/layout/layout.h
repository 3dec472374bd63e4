#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

// How parameters are packed into buckets and cut into shards: integers only. A pure function of its
// arguments, so every rank computes the same layout without communication.
namespace zerosched::detail {

/// What the layout needs to know of a trainable parameter. Parameters are numbered in registration order.
struct ParameterSpec {
  std::string name;
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;
  c10::ScalarType dtype = c10::ScalarType::Float;
  int64_t group = 0;

  int64_t numel() const;
};

/// What a bucket's communication costs.
enum class Wire {
  host,     ///< memory that ranks share
  network,  ///< messages of ranks on several hosts
  nccl,
};

/// What ShardingOptions::bucket_bytes says of it. Ranks of one host that share memory lose more by waiting for each other
/// for every bucket than they gain by beginning earlier. Over a network the first bucket's way and the last one's update
/// are what nothing hides, so they are small, but each rank's part fills a message. A ring of GPUs takes the longer to start the more there are, so over
/// NCCL it is more with them: tests/timeline/bench_timeline has what others would cost. Not more than that, as gradients
/// take bucket_buffers times as much memory.
int64_t default_bucket_bytes(Wire wire, int64_t world_size);

struct LayoutOptions {
  int64_t bucket_bytes = 0;
  int64_t first_bucket_bytes = 0;
  c10::ScalarType reduce_dtype = c10::ScalarType::Undefined;  ///< Undefined: each parameter's own
};

/// A parameter's elements [0, numel) lie, in memory order, at [offset, offset + numel) of its bucket.
struct Slot {
  int64_t parameter = 0;
  int64_t offset = 0;
  int64_t numel = 0;
};

/// A run of elements of one slot inside one rank's slice of the bucket.
struct Piece {
  int64_t slot = 0;         ///< index into Bucket::slots
  int64_t slot_begin = 0;   ///< first element, counted from the slot's own
  int64_t slice = 0;        ///< rank that owns it
  int64_t slice_begin = 0;  ///< first element, counted from the slice's own
  int64_t numel = 0;
  int64_t flag = 0;  ///< index of the slot's used-flag among this slice's flags
};

/// Parameters of one group and dtype that are communicated together.
///
/// The parameter buffer is world_size slices of shard_numel elements. The gradient buffer has the same
/// slices, each followed by flags: one element per parameter that overlaps the slice, 1 if this rank used
/// it, so that a reduce-scatter tells each owner which of its parameters any rank used. Two more flags
/// tell what is wrong with the bucket.
struct Bucket {
  int64_t group = 0;
  c10::ScalarType dtype = c10::ScalarType::Float;
  c10::ScalarType reduce_dtype = c10::ScalarType::Float;
  int64_t shard_numel = 0;
  int64_t flag_numel = 0;  ///< per slice, alignment and the two below included
  std::vector<Slot> slots;
  std::vector<Piece> pieces;  ///< ordered by slot, then slice

  int64_t numel(int64_t world_size) const { return shard_numel * world_size; }
  int64_t gradient_slice_numel() const { return shard_numel + flag_numel; }
  // Of every slice's flags the last two are of the bucket as a whole: how many ranks gave it a gradient that is not
  // finite, and the sum of their ranks.
  int64_t not_finite_flag() const { return flag_numel - 2; }
  int64_t not_finite_rank_flag() const { return flag_numel - 1; }
  const Slot& slot(int64_t number) const { return slots[static_cast<size_t>(number)]; }
  const Slot& slot_of(const Piece& piece) const { return slot(piece.slot); }
};

struct Layout {
  int64_t world_size = 1;
  std::vector<Bucket> buckets;  ///< in reverse registration order, as backward usually reaches them
  struct Place {
    int64_t bucket = -1;  ///< -1: the parameter has no elements
    int64_t slot = -1;
  };
  std::vector<Place> place_of;  ///< by parameter

  const Bucket& bucket(int64_t number) const { return buckets[static_cast<size_t>(number)]; }
  int64_t bucket_count() const { return static_cast<int64_t>(buckets.size()); }
  const Place& place(int64_t parameter) const { return place_of[static_cast<size_t>(parameter)]; }
  int64_t shard_numel() const;  ///< elements of state per rank, padding included
};

/// Every parameter starts on 128 bytes, and so does every slice. A bucket is closed before it would pass
/// bucket_bytes; a parameter larger than that is a bucket of its own.
/// Throws if options are not positive, or a reduce_dtype cannot hold a parameter's gradient.
Layout make_layout(
    const std::vector<ParameterSpec>& parameters, const LayoutOptions& options, int64_t world_size);

}  // namespace zerosched::detail
