#pragma once

#include <memory>

namespace zerosched::detail {

/// Never frees `object`: for memory that a transport may still read or write after it has been given up.
void keep_for_ever(std::shared_ptr<void> object);

}  // namespace zerosched::detail
