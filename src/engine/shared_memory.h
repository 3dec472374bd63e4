#pragma once

#include "engine/model.h"

namespace zerosched::detail {

/// Throws if a trained parameter lies in the same memory as another tensor of the model, naming both: it is
/// given memory of its own, which would untie them. What is only kept may share memory as it likes.
void check_no_shared_memory(const Model& model);

}  // namespace zerosched::detail
