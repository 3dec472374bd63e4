// What cannot be trained, and whose a parameter is: each has memory of its own, and one optimizer.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/safetensors.h>
#include <zerosched/sgd.h>

#include <c10/core/InferenceMode.h>
#include <torch/nn/module.h>

namespace zerosched::testing {
namespace {

class Ownership : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();
  const std::string last = "rank " + std::to_string(size - 1) + ": ";
};

ParameterGroup one(const std::string& name, const at::Tensor& parameter) {
  return ParameterGroup(NamedParameters{{name, parameter}});
}

at::Tensor parameter(std::vector<int64_t> shape) { return at::ones(shape).requires_grad_(); }

TEST_F(Ownership, MemoryThatIsShared) {
  const auto expect_refused = [&](const NamedParameters& named, const std::vector<std::string>& parts) {
    // On the last rank alone: all hear of it.
    NamedParameters fine;
    for (const auto& [name, tensor] : named) {
      fine.emplace_back(name, tensor.detach().clone().requires_grad_(tensor.requires_grad()));
    }
    std::vector<std::string> all = parts;
    all.push_back(last);
    all.emplace_back("register one tensor under both names");
    expect_error([&] { AdamWScheduleFree({ParameterGroup(rank == size - 1 ? named : fine)}, world()); }, all);
  };
  const at::Tensor flat = at::ones({12});
  const auto piece = [&](int64_t begin, int64_t numel) {
    return flat.narrow(0, begin, numel).requires_grad_();
  };
  at::Tensor tied = parameter({4});
  const at::Tensor first = parameter({4});
  tied.set_data(first.data());
  expect_refused({{"in", first}, {"out", tied}}, {"parameter 'in' and parameter 'out'", "set_data()"});
  expect_refused({{"a", piece(0, 8)}, {"b", piece(6, 3)}}, {"'a' and parameter 'b'"});
  expect_refused({{"a", piece(5, 2)}, {"b", piece(0, 6)}}, {"'b' and parameter 'a'"});
  expect_refused({{"w", first}, {"frozen", first.detach()}}, {"'w'", "'frozen'"});
  // Within a larger frozen one, behind a smaller one.
  expect_refused({{"whole", flat}, {"small", flat.narrow(0, 1, 1)}, {"b", piece(6, 3)}},
      {"parameter 'b' and parameter 'whole'"});

  // Neighbours, and frozen ones among themselves, are fine; the frozen are the same tensors' memory still.
  const at::Tensor view = flat.narrow(0, 9, 3), same = flat.narrow(0, 9, 2);
  {
    AdamWScheduleFree optimizer(
        {ParameterGroup(NamedParameters{{"a", piece(0, 4)}, {"b", piece(4, 5)}, {"v", view}, {"s", same}})},
        world());
  }
  EXPECT_EQ(view.const_data_ptr(), same.const_data_ptr());
}

struct Buffered : torch::nn::Module {
  Buffered(bool shares, const at::Tensor& weight) {
    register_parameter("weight", weight);
    register_buffer("copy", shares ? weight.detach()[0] : at::ones({3}));
    register_buffer("again", named_buffers()["copy"].view({3, 1}));
  }
};

TEST_F(Ownership, BuffersThatShareMemoryWithWhatIsTrained) {
  const Buffered fine(false, parameter({2, 3}));
  { const AdamWScheduleFree optimizer(fine, world()); }
  const Buffered wrong(rank == size - 1, parameter({2, 3}));
  expect_error([&] { AdamWScheduleFree(wrong, world()); }, {last, "parameter 'weight' and buffer 'copy'"});
}

TEST_F(Ownership, ATiedNameIsNobodyElses) {
  const at::Tensor w = parameter({3}), v = parameter({4});
  for (const NamedParameters& named :
      {NamedParameters{{"a", w}, {"v", v}, {"v", w}}, NamedParameters{{"a", w}, {"v", w}, {"v", v}}}) {
    expect_error(
        [&] { AdamWScheduleFree({ParameterGroup(named)}, world()); }, {"two parameters are named 'v'"});
  }
  const NamedParameters twice = {{"a", w}, {"b", w}, {"a", w}};
  const AdamWScheduleFree optimizer({ParameterGroup(twice)}, world());
}

struct TwoOfAName : torch::nn::Module {
  TwoOfAName() {
    register_parameter("w", at::ones({3}));
    register_buffer("w", at::ones({3}));
  }
};

TEST_F(Ownership, ABufferAndAParameterOfTheSameName) {
  expect_error([&] { AdamWScheduleFree(TwoOfAName(), world()); }, {"a parameter and a buffer", "'w'"});
}

TEST_F(Ownership, InferenceMode) {
  const bool odd_one = rank == size - 1;
  const NamedParameters parameters = make_parameters({{5}, {6}});
  expect_error(
      [&] {
        const c10::InferenceMode inference(odd_one);
        AdamWScheduleFree({ParameterGroup(parameters)}, world());
      },
      {last, "constructed under c10::InferenceMode", "outside"});
  const at::Tensor made_inside = [&] {
    const c10::InferenceMode inference(odd_one);
    return at::ones({3});
  }();
  expect_error(
      [&] {
        AdamWScheduleFree({ParameterGroup(parameters), one("inside", made_inside)}, world());
      },
      {last, "parameter 'inside' was made in inference mode", "clone()"});
  AdamWScheduleFree optimizer({ParameterGroup(parameters)}, world());
  {
    const c10::InferenceMode inference;
    optimizer.eval();
  }
  optimizer.train();
  backward(parameters, random_gradients(parameters, 0, rank));
  optimizer.step();
}

// The way that the error tells, against complex arithmetic done by LibTorch.
TEST_F(Ownership, ComplexParametersTrainAsTheirRealView) {
  const at::Tensor numbers = at::arange(3, at::kDouble);
  const at::Tensor value = at::complex(numbers, numbers - 1), target = at::complex(1 - numbers, numbers);
  const bool odd_one = rank == size - 1;
  expect_error(
      [&] {
        AdamWScheduleFree({one("c", odd_one ? value.clone().requires_grad_() : parameter({3}))}, world());
      },
      {last, "parameter 'c' is ComplexDouble", "view_as_real(value).clone()", "view_as_complex(parameter)"});

  const at::Tensor real = at::view_as_real(value).clone().requires_grad_();
  SGD optimizer({one("c", real)}, world(), SGDOptions(0.1).momentum(0.9));
  at::Tensor reference = value.clone(), momentum = at::zeros_like(value);
  for (int64_t step = 0; step < 4; ++step) {
    optimizer.zero_grad();
    at::view_as_real(at::view_as_complex(real) * target - value).square().sum().backward();
    optimizer.step();
    // d/dw |w t - v|^2, in LibTorch's convention: 2 conj(t) (w t - v).
    momentum = 0.9 * momentum + 2 * target.conj() * (reference * target - value);
    reference = reference - 0.1 * momentum;
  }
  EXPECT_TRUE(at::allclose(at::view_as_complex(real.detach()), reference, 1e-12, 1e-12));
}

TEST_F(Ownership, TwoOptimizersOfOneParameter) {
  const at::Tensor encoder = parameter({5}), mine = parameter({4}), yours = parameter({3});
  const auto groups = [](const std::string& name, const at::Tensor& shared, const at::Tensor& own) {
    return std::vector<ParameterGroup>{ParameterGroup(NamedParameters{{"own", own}, {name, shared}})};
  };
  {
    AdamWScheduleFree first(groups("encoder", encoder, mine), world());
    const bool odd_one = rank == size - 1;
    const auto wrong = groups("shared.encoder", odd_one ? encoder : parameter({5}), yours);
    expect_error([&] { AdamWScheduleFree(wrong, world()); },
        {last, "parameter 'shared.encoder' is trained by another optimizer", "knows it as 'encoder'"});
    // Neither more nor less of the same replaces it.
    expect_error([&] { AdamWScheduleFree({one("encoder", encoder)}, world()); }, {"another optimizer"});
    expect_error(
        [&] {
          SGD({one("own", mine), one("e", encoder), one("more", yours)}, world());
        },
        {"parameter 'own' is trained by another optimizer"});
    // The first is as it was.
    (encoder.sum() + mine.sum()).backward();
    first.step();
  }
  AdamWScheduleFree second(groups("shared.encoder", encoder, yours), world());
}

TEST_F(Ownership, AnOptimizerOverTheSameParametersReplacesTheFirst) {
  const Scratch scratch;
  enum class InFlight { nowhere, everywhere, on_one_rank };
  for (const auto in_flight : {InFlight::nowhere, InFlight::everywhere, InFlight::on_one_rank}) {
    const NamedParameters parameters = make_parameters({{40}, {41}}), others = make_parameters({{40}, {41}});
    const auto make = [&](const NamedParameters& named) {
      return std::make_unique<AdamWScheduleFree>(
          std::vector<ParameterGroup>{ParameterGroup(named)}, world(), 0.1, buckets_of(1));
    };
    auto optimizer = make(parameters);
    if (in_flight != InFlight::on_one_rank || rank == size - 1) {
      backward(parameters, random_gradients(parameters, 0, rank));
    }
    if (in_flight == InFlight::nowhere) optimizer->step();
    std::unique_ptr<AdamWScheduleFree> old = std::move(optimizer);
    optimizer = make(parameters);
    const auto expect_gone = [&](const std::function<void()>& call) {
      expect_error(call, {"another optimizer was constructed over the same parameters", "Use that one"});
    };
    expect_gone([&] { old->step(); });
    expect_gone([&] { old->zero_grad(); });
    expect_gone([&] { old->train(); });
    expect_gone([&] { old->eval(); });
    expect_gone([&] { old->training(); });
    expect_gone([&] { (void)old->eval_scope(); });
    expect_gone([&] { (void)old->no_sync(); });
    expect_gone([&] { old->grad_norm(); });
    expect_gone([&] { old->state_bytes(); });
    expect_gone([&] { old->full_state("x"); });
    expect_gone([&] { old->reset_from_parameters(); });
    expect_gone([&] { old->save_checkpoint(scratch / "c"); });
    expect_gone([&] { old->load_checkpoint(scratch / "c"); });
    expect_gone([&] { export_safetensors(*old, scratch / "x"); });
    expect_gone([&] { import_safetensors(*old, scratch / "x"); });
    expect_gone([&] { old->timings(); });
    expect_gone([&] { old->timing_report(); });
    expect_gone([&] { old->communicator(); });

    // The new one is as one that never had a predecessor, whenever that goes.
    const at::NoGradGuard no_grad;
    for (size_t p = 0; p < others.size(); ++p) others[p].second.detach().copy_(parameters[p].second);
    const auto alone = make(others);
    for (int64_t step = 1; step < 4; ++step) {
      const at::AutoGradMode with_gradients(true);
      if (step == 2) old.reset();
      backward(parameters, random_gradients(parameters, step, rank));
      backward(others, random_gradients(others, step, rank));
      optimizer->step();
      alone->step();
    }
    expect_same_bits(full_state(*optimizer), full_state(*alone));
    optimizer = make(parameters);  // the usual way to write it
    const at::AutoGradMode with_gradients(true);
    backward(parameters, random_gradients(parameters, 9, rank));
    optimizer->step();
  }
}

}  // namespace
}  // namespace zerosched::testing
