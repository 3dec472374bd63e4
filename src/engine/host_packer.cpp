#include "engine/gradient_packer.h"
#include "kernels/kernels.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace zerosched::detail {
namespace {

class HostPacker final : public GradientPacker {
 public:
  HostPacker(const Layout& layout, int64_t rank)
      : layout_(layout), rank_(rank), states_(layout.buckets.size()) {
    reset();
  }

  bool needs_buffer() const override { return true; }

  bool put(const OutgoingBucket& to, int64_t slot, const at::Tensor& gradient) override {
    // The mean over no samples at all is often NaN, which must not count 0 times but not at all.
    if (to.weight == 0) return true;
    const Bucket& layout = bucket(to.bucket);
    const at::Tensor rows = to.flat.view({layout_.world_size, to.slice_numel});
    bool finite = true;
    auto piece = std::lower_bound(layout.pieces.begin(), layout.pieces.end(), slot,
        [](const Piece& candidate, int64_t wanted) { return candidate.slot < wanted; });
    for (; piece != layout.pieces.end() && piece->slot == slot; ++piece) {
      const at::Tensor in = rows[piece->slice].narrow(0, piece->slice_begin, piece->numel);
      const at::Tensor from = gradient.narrow(0, piece->slot_begin, piece->numel);
      finite &= kernels::copy_gradient(in.scalar_type(), in.data_ptr(), from.scalar_type(),
          from.const_data_ptr(), piece->numel, to.weight);
    }
    State& state = states_[static_cast<size_t>(to.bucket)];
    state.has_gradient[static_cast<size_t>(slot)] = true;
    state.is_finite = state.is_finite && finite;
    return finite;
  }

  void seal(int64_t) override {}

  void finish(const OutgoingBucket& to, const std::byte* report) override {
    const Bucket& layout = bucket(to.bucket);
    const at::Tensor rows = to.flat.view({layout_.world_size, to.slice_numel});
    zero_what_is_absent(to, rows);
    write_flags(to, rows);
    const int64_t gradients = layout.gradient_slice_numel();
    if (to.slice_numel == gradients) return;
    for (int64_t slice = 0; slice < layout_.world_size; ++slice) {
      const at::Tensor end = rows[slice].narrow(0, gradients, to.slice_numel - gradients);
      std::memcpy(end.data_ptr(), report, end.nbytes());
    }
  }

  void give_back() override {}
  void reduced(int64_t) override {}

  void reset() override {
    for (size_t b = 0; b < states_.size(); ++b) {
      states_[b].has_gradient.assign(layout_.buckets[b].slots.size(), false);
      states_[b].is_finite = true;
    }
  }

 private:
  struct State {
    std::vector<bool> has_gradient;  ///< by slot
    bool is_finite = true;
  };

  const Bucket& bucket(int64_t index) const { return layout_.bucket(index); }
  const State& state_of(const OutgoingBucket& to) const { return states_[static_cast<size_t>(to.bucket)]; }

  // The gaps between parameters, and the parameters without a gradient.
  void zero_what_is_absent(const OutgoingBucket& to, const at::Tensor& rows) const {
    const Bucket& layout = bucket(to.bucket);
    const State& state = state_of(to);
    int64_t slice = 0;
    int64_t filled = 0;  // up to here, within the slice
    const auto zero = [&](int64_t end) {
      if (end > filled) rows[slice].narrow(0, filled, end - filled).zero_();
    };
    for (const Piece& piece : layout.pieces) {
      if (!state.has_gradient[static_cast<size_t>(piece.slot)]) continue;
      for (; slice < piece.slice; ++slice, filled = 0) zero(layout.shard_numel);
      zero(piece.slice_begin);
      filled = piece.slice_begin + piece.numel;
    }
    for (; slice < layout_.world_size; ++slice, filled = 0) zero(layout.shard_numel);
  }

  void write_flags(const OutgoingBucket& to, const at::Tensor& rows) const {
    const Bucket& layout = bucket(to.bucket);
    const State& state = state_of(to);
    const at::Tensor flags = rows.narrow(1, layout.shard_numel, layout.flag_numel);
    flags.fill_(1);  // few have none
    for (const Piece& piece : layout.pieces) {
      if (!state.has_gradient[static_cast<size_t>(piece.slot)]) flags[piece.slice][piece.flag].fill_(0);
    }
    flags.select(1, layout.not_finite_flag()).fill_(state.is_finite ? 0 : 1);
    flags.select(1, layout.not_finite_rank_flag()).fill_(state.is_finite ? 0.0 : static_cast<double>(rank_));
  }

  const Layout& layout_;
  const int64_t rank_;
  std::vector<State> states_;
};

}  // namespace

std::unique_ptr<GradientPacker> make_host_packer(const Layout& layout, int64_t rank) {
  return std::make_unique<HostPacker>(layout, rank);
}

}  // namespace zerosched::detail
