#pragma once

#include "kernels/element_types.h"

// What a gradient's element becomes in a bucket, whose type may be another.
namespace zerosched::kernels {

/// With weight 1, of any type. The same type keeps its bits, which a conversion there and back would not: NaN.
struct Converted {
  template <typename Element>
  ZEROSCHED_ELEMENT void write(Element& to, Element from) const {
    to = from;
  }
  template <typename To, typename From>
  ZEROSCHED_ELEMENT void write(To& to, From from) const {
    store(to, load(from));
  }
};

/// With any other, multiplied in the type of the state.
template <typename Real>
struct Weighted {
  Real weight;

  template <typename To, typename From>
  ZEROSCHED_ELEMENT void write(To& to, From from) const {
    store(to, load(from) * weight);
  }
};

}  // namespace zerosched::kernels
