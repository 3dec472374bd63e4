#include "comm/failure/header.h"

#include "comm/label.h"

#include <cstring>
#include <string_view>

namespace zerosched::detail {

namespace {

// FNV-1a; std::hash may differ between ranks that run different builds of the standard library.
uint64_t hash_of(std::string_view text) {
  uint64_t hash = 14695981039346656037u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

}  // namespace

Header make_header(Collective kind, const CollectiveLabel& label, const at::Tensor* tensor) {
  Header header;
  std::memset(&header, 0, sizeof(header));
  header.bucket = label.bucket;
  header.step = label.step;
  header.root = -1;
  header.kind = static_cast<uint8_t>(kind);
  header.dtype = tensor == nullptr ? int8_t{-1} : static_cast<int8_t>(tensor->scalar_type());
  header.byte_count = tensor == nullptr ? 0 : static_cast<int64_t>(tensor->nbytes());
  const std::string_view what = label.what == nullptr ? "" : label.what;
  header.label_hash = hash_of(what);
  std::memcpy(header.what, what.data(), std::min(what.size(), sizeof(header.what) - 1));
  return header;
}

bool matches(const Header& a, const Header& b) { return std::memcmp(&a, &b, sizeof(Header)) == 0; }

std::string describe(const Header& header) {
  CollectiveLabel label;
  label.what = header.what;
  label.bucket = header.bucket;
  label.step = header.step;
  return describe(static_cast<Collective>(header.kind), header.sequence, label);
}

std::string describe_in_full(const Header& header) {
  std::string text = describe(header) + " of " + std::to_string(header.byte_count) + " bytes";
  if (header.dtype >= 0)
    text += std::string(" of ") + c10::toString(static_cast<at::ScalarType>(header.dtype));
  if (static_cast<Collective>(header.kind) == Collective::all_reduce) {
    static constexpr const char* kReductions[] = {"sum", "max", "min"};
    text += std::string(", ") + kReductions[header.reduction % 3];
  }
  if (header.in_window != 0) text += ", in memory that ranks of a host share";
  if (header.root >= 0) text += ", root " + std::to_string(header.root);
  return text;
}

}  // namespace zerosched::detail
