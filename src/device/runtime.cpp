#include "device/runtime.h"

#include <algorithm>

namespace zerosched::device {

Runtime::~Runtime() = default;

void add_once(std::vector<Stream>& known, Stream stream) {
  if (std::find(known.begin(), known.end(), stream) == known.end()) known.push_back(stream);
}

}  // namespace zerosched::device
