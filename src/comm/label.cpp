#include "comm/label.h"

namespace zerosched::detail {

std::string describe(Collective kind, int64_t sequence, const CollectiveLabel& label) {
  std::string text(name_of(kind));
  if (sequence >= 0) text += " #" + std::to_string(sequence);
  if (label.what != nullptr && *label.what != '\0') text += " '" + std::string(label.what) + "'";
  if (label.bucket >= 0 || label.step >= 0) {
    text += " (";
    if (label.bucket >= 0) text += "bucket " + std::to_string(label.bucket);
    if (label.bucket >= 0 && label.step >= 0) text += ", ";
    if (label.step >= 0) text += "step " + std::to_string(label.step);
    text += ")";
  }
  return text;
}

}  // namespace zerosched::detail
