#include <zerosched/device_identity.h>

#include "device/runtime.h"

namespace zerosched {

std::string device_identity(at::Device device) {
  if (!device.is_cuda()) return {};
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text;
  for (const char byte : device::cuda().identity(device.index())) {
    const auto value = static_cast<unsigned char>(byte);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

}  // namespace zerosched
