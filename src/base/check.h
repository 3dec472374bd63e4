#pragma once

#include <zerosched/error.h>

#include <c10/macros/Macros.h>
#include <c10/util/StringUtil.h>

/// Throws zerosched::Error with what follows as one text, as TORCH_CHECK does c10::Error, unless `condition` holds.
#define ZEROSCHED_CHECK(condition, ...)                                                            \
  do {                                                                                             \
    if (C10_UNLIKELY(!(condition))) {                                                              \
      throw ::zerosched::Error({__func__, __FILE__, uint32_t{__LINE__}}, ::c10::str(__VA_ARGS__)); \
    }                                                                                              \
  } while (false)
