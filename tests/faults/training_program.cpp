// One rank of the jobs that training_test.py starts: trains, until the fault named by the first argument.
#include <zerosched/adamw_schedulefree.h>
#include <zerosched/session.h>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include <unistd.h>

namespace {

constexpr int64_t kSteps = 6;
constexpr int64_t kFaultyStep = 3;

using zerosched::AdamWScheduleFree;
using zerosched::NamedParameters;
using zerosched::ParameterGroup;
using zerosched::Session;

struct Job {
  std::string fault;
  Session& session;
  NamedParameters parameters;
  AdamWScheduleFree optimizer;

  bool faulty(const char* name, int64_t step) const {
    return fault == name && step == kFaultyStep && session.rank() == 1;
  }
};

at::Tensor forward(Job& job, int64_t step) {
  at::Tensor loss = at::zeros({});
  for (const auto& named : job.parameters) {
    loss = loss + (named.second * static_cast<double>(step + job.session.rank())).sum();
    if (job.faulty("throw_in_forward", step)) throw std::runtime_error("the forward pass failed");
  }
  return loss;
}

void train_step(Job& job, int64_t step) {
  job.optimizer.zero_grad();
  const at::Tensor loss = forward(job, step);
  // Fires in the middle of backward, when the buckets of later parameters are on their way.
  if (job.session.rank() == 1 && step == kFaultyStep) {
    job.parameters[2].second.register_hook([&job, step](const at::Tensor&) {
      if (job.faulty("throw_in_hook", step)) throw std::runtime_error("the user's hook failed");
      if (job.faulty("stop_in_backward", step)) std::raise(SIGSTOP);
      if (job.faulty("kill_in_backward", step)) std::raise(SIGKILL);
      if (job.faulty("exit_in_backward", step)) std::_Exit(0);
    });
  }
  loss.backward();
  if (job.faulty("throw_before_step", step)) throw std::runtime_error("the metrics disk is full");
  if (job.faulty("stop_before_step", step)) std::raise(SIGSTOP);
  if (job.faulty("kill_before_step", step)) std::raise(SIGKILL);
  if (job.faulty("second_backward", step)) forward(job, step).backward();
  if (job.faulty("edited_parameter", step)) {
    const at::NoGradGuard no_grad;
    at::Tensor(job.parameters[1].second).mul_(0.5);
  }
  if (job.faulty("zero_grad", step)) {
    job.optimizer.zero_grad();
    return;
  }
  job.optimizer.step();
  if (job.fault == "throw_in_evaluation") {
    const auto evaluation = job.optimizer.eval_scope();
    if (job.faulty("throw_in_evaluation", step)) throw std::runtime_error("the evaluation failed");
  }
}

// What all ranks catch alike is no failure of the job.
void try_in_vain(const std::string& fault, Session& session, const NamedParameters& parameters) {
  try {
    AdamWScheduleFree optimizer({ParameterGroup(parameters)}, session.communicator(), {},
        zerosched::ShardingOptions().bucket_bytes(1).first_bucket_bytes(1));
    if (fault == "caught_load") optimizer.load_checkpoint("/no/such/checkpoint");
    parameters[2].second.sum().backward();
    throw std::runtime_error("a trial has failed");
  } catch (const std::exception& error) {
    if (session.rank() == 0) std::printf("caught: %s\n", error.what());
  }
}

// A GAN, say, whose ranks step its optimizers in different orders.
void step_in_other_order(Session& session, const NamedParameters& parameters) {
  const NamedParameters of_first(parameters.begin(), parameters.begin() + 2);
  const NamedParameters of_second(parameters.begin() + 2, parameters.end());
  AdamWScheduleFree first({ParameterGroup(of_first)}, session.communicator(), {});
  AdamWScheduleFree second({ParameterGroup(of_second)}, session.communicator(), {});
  (of_first[0].second.sum() + of_second[0].second.sum()).backward();
  AdamWScheduleFree* order[] = {&first, &second};
  if (session.rank() == 1) std::swap(order[0], order[1]);
  for (AdamWScheduleFree* optimizer : order) optimizer->step();
}

int run(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "none";
  const double timeout = argc > 2 ? std::atof(argv[2]) : 60;
  const bool flat = argc > 3 && std::string(argv[3]) == "flat";
  Session session(argc, argv, zerosched::SessionOptions().timeout(timeout).flat_collectives(flat));
  const bool odd_one = session.rank() == 1;
  NamedParameters parameters;
  for (int i = 0; i < 5; ++i) {
    const int64_t numel = fault == "different_model" && odd_one && i == 3 ? 99 : 100;
    parameters.emplace_back("layer" + std::to_string(i), at::ones({numel}).requires_grad_());
  }
  if (fault == "caught_load" || fault == "caught_trial") try_in_vain(fault, session, parameters);
  if (fault == "other_order") step_in_other_order(session, parameters);
  static std::unique_ptr<Job> kept;  // outlives the session
  std::unique_ptr<Job> job(new Job{fault, session, parameters,
      AdamWScheduleFree({ParameterGroup(parameters)}, session.communicator(), {},
          zerosched::ShardingOptions().bucket_bytes(1).first_bucket_bytes(1))});
  for (int64_t step = 0; step < kSteps; ++step) {
    if (job->faulty("leaves_early", step) || job->faulty("leaves_before_eval", step)) break;
    if (job->faulty("session_ends_early", step)) {
      kept = std::move(job);
      return 0;
    }
    if (step == kFaultyStep && fault == "leaves_before_eval") job->optimizer.eval();
    if (job->faulty("busy", step)) std::this_thread::sleep_for(std::chrono::seconds(6));
    if (job->faulty("forks", step) && fork() == 0) std::exit(0);
    train_step(*job, step);
  }
  if (session.rank() == 0) std::printf("trained %d ranks\n", session.world_size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  // With "caught" as third argument, as in programs that report errors themselves; "flat": ranks exchange by messages.
  if (argc <= 3 || std::string(argv[3]) != "caught") return run(argc, argv);
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "caught: %s\n", error.what());
    return 3;
  }
}
