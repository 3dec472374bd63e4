#include "engine/shared_memory.h"

#include "base/check.h"

#include <algorithm>
#include <cstdint>

namespace zerosched::detail {
namespace {

/// The addresses [begin, end) from a tensor's first element to its last, gaps between them included.
struct ByteRange {
  uintptr_t begin, end;
  bool is_trained;
  const char* kind;
  const std::string* name;
};

void add(std::vector<ByteRange>& ranges, const std::vector<at::Tensor>& tensors,
    const std::vector<std::string>& names, bool is_trained, const char* kind) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    if (tensor.layout() != at::kStrided || tensor.numel() == 0 || !tensor.has_storage()) continue;
    int64_t last = 0;  // element, counted from the first
    for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    if (begin == 0) continue;  // without memory, as on the meta device
    ranges.push_back({begin, begin + static_cast<uintptr_t>((last + 1) * tensor.element_size()), is_trained,
        kind, &names[i]});
  }
}

[[noreturn]] void refuse(const ByteRange& trained, const ByteRange& other) {
  ZEROSCHED_CHECK(false, "parameter '", *trained.name, "' and ", other.kind, " '", *other.name,
      "' are two tensors in the same memory (tied by set_data(), or views of one another). The optimizer "
      "moves "
      "what it trains into memory of its own, which would untie them. To tie them, register one tensor under "
      "both names; else give one of them memory of its own with clone().");
}

}  // namespace

void check_no_shared_memory(const Model& model) {
  std::vector<ByteRange> ranges;
  add(ranges, model.parameters, model.names, true, "parameter");
  add(ranges, model.frozen, model.frozen_names, false, "parameter");
  add(ranges, model.buffers, model.buffer_names, false, "buffer");
  std::stable_sort(
      ranges.begin(), ranges.end(), [](const ByteRange& a, const ByteRange& b) { return a.begin < b.begin; });
  // Of what began before, the range that reaches furthest: of all, and of what is trained.
  const ByteRange* furthest = nullptr;
  const ByteRange* furthest_trained = nullptr;
  for (const ByteRange& range : ranges) {
    if (furthest_trained != nullptr && furthest_trained->end > range.begin) refuse(*furthest_trained, range);
    if (range.is_trained && furthest != nullptr && furthest->end > range.begin) refuse(range, *furthest);
    if (furthest == nullptr || range.end > furthest->end) furthest = &range;
    if (range.is_trained && (furthest_trained == nullptr || range.end > furthest_trained->end)) {
      furthest_trained = &range;
    }
  }
}

}  // namespace zerosched::detail
