// A round before its update: gradients leave, and ranks hear what the others have told with theirs.
#include "base/check.h"
#include "comm/agree.h"
#include "comm/failure/whereabouts.h"
#include "engine/engine.h"
#include "engine/phase_timer.h"

#include <string>
#include <vector>

namespace zerosched::detail {
namespace {

// An edit that other ranks have no way to hear of in the step.
constexpr const char* kTooLateToReset =
    " The other ranks are in the midst of a step, so this optimizer gives up: construct a new one over the "
    "module as it is, or edit weights before backward.";

}  // namespace

// From a hook, usually: in the midst of backward.
OwnReport Engine::own_report() {
  OwnReport report;
  // What forward has not asked for; but what check_ready has made NaN stays it for all of backward, or gradients would not
  // tell.
  if (gathers_ && !sharding_.check_ready()) gathers_->wait_all();
  if (options_source_) report.values = steering_->values(options_source_(), 0);
  report.last_values = last_values_;
  report.suspects_writes = may_have_been_written();
  return report;
}

void Engine::collect(const GroupOptions& options) {
  if (current_.collected) return;
  steering_->check(options);
  check_frozen();
  ZEROSCHED_CHECK(state_->is_finite() || sharding_.non_finite() != NonFinite::error,
      "the optimizer's state holds an inf or a NaN. Load a checkpoint from before, or put right weights into "
      "the module and construct a new optimizer over it.");
  read_late_reports(false);
  {
    const PhaseTimer timer(timings_.collect_gradients);
    reducer_->launch_missing();
  }
  current_.collected = true;
  read_report(options);
}

void Engine::read_report(const GroupOptions& options) {
  const OwnReport& own = reducer_->own_report();
  current_.values = steering_->values(options, 0);
  current_.average =
      sharding_.gradients() == GradientInput::already_averaged ? 1.0 : 1.0 / communicator_->size();
  // On a device that other ranks train with too the report is not there yet, and only weights are worth waiting for.
  if (late_reports_ && communicator_->size() > 1 && !own.weight_is_given && !own.has_joined) {
    std::string written = state_->parameters().changed();
    if (written.empty() && looks_at_bits()) written = written_by_others();
    if (!written.empty()) fail(written + kTooLateToReset);
    return;
  }
  {
    const PhaseTimer timer(timings_.wait_reduce_scatter);
    current_.report = reducer_->report();
  }
  use_report();
}

void Engine::use_report() {
  const OwnReport& own = reducer_->own_report();
  const StepReport& all = *current_.report;
  const int rank = communicator_->rank();
  const std::string difference = unlike(own, current_.values, all);
  if (!difference.empty()) fail(difference);
  // Rank 0's, where they differ in the last bits.
  if (!all.values.empty() && steering_->difference(current_.values, rank, all.values, 0).empty()) {
    current_.values = all.values;
  }
  ZEROSCHED_CHECK(!reducer_->was_clipped_by_rank(all.gradient_factor),
      "between backward and step() the gradients in .grad were multiplied with ", own.gradient_factor,
      " on rank ", rank, " and with ", all.gradient_factor,
      " on rank 0, as torch::nn::utils::clip_grad_norm_ does by the norm of each rank's own gradient. Call "
      "zerosched::clip_grad_norm_(optimizer, max_norm), which clips the averaged gradient; to weigh ranks "
      "call "
      "step_weight().");

  const int64_t active = communicator_->size() - all.joined;
  ZEROSCHED_CHECK(all.given_weights == 0 || all.given_weights == active, "step_weight() was called on ",
      all.given_weights, " of ", active,
      " ranks in this step; call it on every rank, with 0 where there is no data, or on none.");
  current_.has_data = all.weight_sum > 0;
  // Alone, gradients are used where backward left them, as they are.
  if (sharding_.gradients() == GradientInput::local && communicator_->size() > 1 && current_.has_data) {
    current_.average = 1.0 / all.weight_sum;
  }
  if (all.suspecting > 0) {
    check_suspected_writes();
  } else {
    // Since this rank's report; bits that are as they were are nothing to tell.
    const std::string written = state_->parameters().changed().empty() ? "" : written_by_others();
    if (!written.empty()) fail(written + kTooLateToReset);
  }
  if (all.joined > 0) find_leader();
}

// Collective.
void Engine::check_suspected_writes() {
  settle();
  try {
    const InCall call("step()");  // on all ranks, whether clipping, dropping or joined
    check_writes("");
  } catch (const AgreedError&) {
    cancel_round();
    throw;
  }
}

// How this rank's values differ from rank 0's: those of the last step, and of this one as far as they were known when the
// report left. A rank's are final, or those that it had when its first gradient arrived; what is not alike in that says
// nothing, and is compared with the next step's gradients. Empty if they do not.
std::string Engine::unlike(
    const OwnReport& own, const std::vector<double>& final_values, const StepReport& all) const {
  const auto difference = [&](const std::vector<double>& mine, const std::vector<double>& theirs) {
    return steering_->difference(mine, communicator_->rank(), theirs, 0);
  };
  std::string text = own.has_joined ? "" : difference(own.last_values, all.last_values);
  if (!text.empty() || own.values.empty()) return text;
  if (all.values_are_final) return difference(final_values, all.values);
  return own.values_are_final ? "" : difference(own.values, all.values);
}

// All ranks end the round together, and are where they were before it, without its gradients.
void Engine::cancel_round() {
  current_ = {};
  reducer_->cancel_round();
}

void Engine::read_late_reports(bool all) {
  if (!late_reports_) return;
  for (const LateReports::Arrived& arrived : late_reports_->take(all, [this] { communicator_->check(); })) {
    if (arrived.not_finite) {
      const bool is_news = state_->is_finite();
      state_->set_finite(false);
      if (is_news && sharding_.non_finite() == NonFinite::error) {
        fail(not_finite_text("a gradient, or its average over ranks,", arrived.step));
      }
    }
    if (arrived.report.empty()) continue;
    const StepReport report = reducer_->decode_report(arrived.carrier, arrived.report.data());
    const std::string difference = unlike(arrived.own, arrived.final_values, report);
    if (!difference.empty()) fail(difference);
    ZEROSCHED_CHECK(report.given_weights == 0, "step_weight() was called on ", report.given_weights, " of ",
        communicator_->size(), " ranks in step ", arrived.step,
        "; call it on every rank, with 0 where there is no data, or on none.");
    ZEROSCHED_CHECK(report.joined == 0, "a rank has called join() after step ", arrived.step,
        ", which ranks on GPUs only see if every step is given its step_weight().");
  }
}

// Of the state that is replaced.
void Engine::forget_late_reports() {
  if (late_reports_) late_reports_->forget([this] { communicator_->check(); });
}

void Engine::step_weight(double weight) {
  check();
  tell_peers_of_errors([&] { reducer_->set_weight(weight); });
}

void Engine::unscale(double loss_scale) {
  check();
  ZEROSCHED_CHECK(!current_.unscaled, "GradScaler::unscale_() was called twice in one step.");
  current_.unscaled = loss_scale;
}

}  // namespace zerosched::detail
