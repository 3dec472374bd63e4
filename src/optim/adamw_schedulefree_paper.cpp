#include "optim/adamw_schedulefree.h"

#include <zerosched/adamw_schedulefree_paper.h>

#include <cmath>
#include <memory>
#include <utility>

namespace zerosched {
namespace detail {
namespace {

class AdamWScheduleFreePaperAlgorithm final : public AdamWScheduleFreeAlgorithm {
 public:
  const char* name() const override { return "AdamWScheduleFreePaper"; }

  PreparedStep prepare(
      const torch::optim::OptimizerOptions& options, const GroupState& state) const override {
    PreparedStep prepared = AdamWScheduleFreeAlgorithm::prepare(options, state);
    prepared.scalars.lr *= std::sqrt(prepared.scalars.bias_correction2);
    prepared.scalars.bias_correction2 = 1;
    average_by(options, prepared, state);
    return prepared;
  }
};

}  // namespace
}  // namespace detail

AdamWScheduleFreePaper::AdamWScheduleFreePaper(Trainable what, std::shared_ptr<Communicator> communicator,
    AdamWScheduleFreePaperOptions options, ShardingOptions sharding)
    : ShardedOptimizer(std::move(what), std::move(communicator),
          std::make_unique<AdamWScheduleFreePaperOptions>(std::move(options)), std::move(sharding),
          std::make_unique<detail::AdamWScheduleFreePaperAlgorithm>()) {}

AdamWScheduleFreePaper::AdamWScheduleFreePaper(const Trainable& module, std::vector<ParameterGroup> groups,
    std::shared_ptr<Communicator> communicator, AdamWScheduleFreePaperOptions options,
    ShardingOptions sharding)
    : AdamWScheduleFreePaper(module.grouped(std::move(groups)), std::move(communicator), std::move(options),
          std::move(sharding)) {}

}  // namespace zerosched
