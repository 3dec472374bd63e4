#include "device/runtime.h"

namespace zerosched::device {

Runtime::~Runtime() = default;

}  // namespace zerosched::device
