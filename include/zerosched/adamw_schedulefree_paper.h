#pragma once

#include <zerosched/adamw_schedulefree.h>

namespace zerosched {

/// Those of AdamWScheduleFree.
using AdamWScheduleFreePaperOptions = AdamWScheduleFreeOptions;

/// Schedule-Free AdamW as algorithm 1 of arXiv 2405.15682 writes it: the bias of v is corrected in the learning rate, and
/// eps is added to the uncorrected root. State as for AdamWScheduleFree.
class ZEROSCHED_EXPORT AdamWScheduleFreePaper
    : public OptimizerOf<AdamWScheduleFreePaper, AdamWScheduleFreePaperOptions> {
 public:
  using OptimizerOf::OptimizerOf;

 private:
  friend OptimizerOf;
  static std::unique_ptr<detail::Algorithm> make_algorithm();
};

}  // namespace zerosched
