// What an optimizer is given: modules, groups of a module's parameters, what is kept, and what is refused.
#include "engine/toy.h"
#include "engine/warnings.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/adamw.h>
#include <zerosched/adamw_schedulefree_paper.h>
#include <zerosched/radam_schedulefree.h>
#include <zerosched/safetensors.h>
#include <zerosched/sgd.h>
#include <zerosched/sgd_schedulefree.h>

#include <c10/core/InferenceMode.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <limits>

namespace zerosched::testing {
namespace {

struct NetImpl : torch::nn::Module {
  NetImpl() {
    torch::manual_seed(1);
    body = register_module("body", torch::nn::Linear(4, 5));
    norm = register_module("norm", torch::nn::BatchNorm1d(5));
    head = register_module("head", torch::nn::Linear(5, 3));
  }
  at::Tensor forward(const at::Tensor& input) { return head(norm(body(input)).relu()); }
  torch::nn::Linear body{nullptr}, head{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(Net);

class Models : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();
  const std::string last = "rank " + std::to_string(size - 1) + ": ";

  void train(Net& net, ShardedOptimizer& optimizer, int64_t steps) {
    for (int64_t step = 0; step < steps; ++step) {
      optimizer.zero_grad();
      const at::Tensor input = random_like(at::empty({6, 4}), step, rank, 0);
      (net->forward(input) - 1).square().mean().backward();
      optimizer.step();
    }
  }
};

std::map<std::string, at::Tensor> values_of(const torch::nn::Module& module) {
  std::map<std::string, at::Tensor> values;
  for (const auto& item : module.named_parameters()) values[item.key()] = item.value().detach().clone();
  for (const auto& item : module.named_buffers()) values[item.key()] = item.value().clone();
  return values;
}

std::vector<std::string> names_in(const NamedParameters& named) {
  std::vector<std::string> names;
  for (const auto& pair : named) names.push_back(pair.first);
  return names;
}

ParameterGroup one(const std::string& name, const at::Tensor& parameter) {
  return ParameterGroup(NamedParameters{{name, parameter}});
}

at::Tensor parameter(std::vector<int64_t> shape) { return at::ones(shape).requires_grad_(); }

template <typename Optimizer, typename Options>
void expect_takes_modules_groups_and_both() {
  Net net;
  const ParameterGroup body(net->body->named_parameters()), head(net->head->named_parameters());
  const std::vector<ParameterGroup> groups = {ParameterGroup(net->body->named_parameters())};
  const auto sharding = ShardingOptions().bucket_buffers(2);
  const auto expect_groups = [](const ShardedOptimizer& optimizer, size_t count) {
    EXPECT_EQ(optimizer.param_groups().size(), count);
  };
  expect_groups(Optimizer(*net, world()), 1);
  expect_groups(Optimizer(*net, world(), Options(0.1), sharding), 1);
  expect_groups(Optimizer(groups, world(), 0.1), 1);
  expect_groups(Optimizer({body}, world(), {}, sharding), 1);
  expect_groups(Optimizer(*net, groups, world()), 1);
  expect_groups(Optimizer(*net, {body, head}, world(), {}, sharding), 2);
  expect_groups(Optimizer(Trainable(*net), world()), 1);
  expect_groups(*std::make_unique<Optimizer>(*net, groups, world(), Options(0.1)), 1);
}

TEST_F(Models, EveryClassTakesModulesGroupsAndBoth) {
  expect_takes_modules_groups_and_both<AdamW, AdamWOptions>();
  expect_takes_modules_groups_and_both<SGD, SGDOptions>();
  expect_takes_modules_groups_and_both<SGDScheduleFree, SGDScheduleFreeOptions>();
  expect_takes_modules_groups_and_both<RAdamScheduleFree, RAdamScheduleFreeOptions>();
  expect_takes_modules_groups_and_both<AdamWScheduleFree, AdamWScheduleFreeOptions>();
  expect_takes_modules_groups_and_both<AdamWScheduleFreePaper, AdamWScheduleFreePaperOptions>();
}

TEST_F(Models, ATrainableSaysWhatItHolds) {
  Net net;
  const Trainable what(*net);
  ASSERT_TRUE(what.module());
  EXPECT_EQ(names_in(what.module()->buffers),
      (std::vector<std::string>{"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}));
  EXPECT_EQ(names_in(what.groups().front().named_parameters()), names_in(parameters_of(*net)));
  EXPECT_TRUE(what.module_now());
  EXPECT_FALSE(Trainable(what.groups()).module());
  EXPECT_FALSE(Trainable(what.groups()).module_now());
  const Trainable outlives = [] { return Trainable(*Net()); }();
  EXPECT_TRUE(outlives.module());
  EXPECT_FALSE(outlives.module_now());
  const NetImpl on_the_stack;
  EXPECT_FALSE(Trainable(on_the_stack).module_now());
}

// Two groups of a module train as groups alone do, bit for bit; the rest of the module stays and is saved.
TEST_F(Models, GroupsOfAModuleTrainAndTheRestIsKept) {
  const Scratch scratch;
  Net net;
  const auto groups_of = [](Net& of) {
    // Named otherwise than in the module, "weight" and "bias" in both groups.
    return std::vector<ParameterGroup>{
        ParameterGroup(of->body->named_parameters(), AdamWScheduleFreeOptions(0.1)),
        ParameterGroup(of->head->named_parameters(), AdamWScheduleFreeOptions(0.01).weight_decay(0.1))};
  };
  if (rank > 0) {
    const at::NoGradGuard no_grad;
    net->norm->weight.fill_(7);  // rank 0's is what all start from
  }
  AdamWScheduleFree optimizer(*net, groups_of(net), world());
  EXPECT_TRUE(at::equal(net->norm->weight, at::ones({5})));
  train(net, optimizer, 4);
  EXPECT_TRUE(at::equal(net->norm->weight, at::ones({5})));
  EXPECT_TRUE(net->norm->weight.grad().defined()) << "LibTorch's own affair";
  const auto x = optimizer.full_state("x");
  EXPECT_EQ(x.size(), 4U);

  Net other;
  {
    const auto group = [&](const std::string& prefix, const AdamWScheduleFreeOptions& options) {
      NamedParameters named;
      for (const auto& [name, tensor] : parameters_of(*other)) {
        if (name.rfind(prefix, 0) == 0) named.emplace_back(name, tensor);
      }
      return ParameterGroup(named, options);
    };
    AdamWScheduleFree alone({group("body", AdamWScheduleFreeOptions(0.1)),
                                group("head", AdamWScheduleFreeOptions(0.01).weight_decay(0.1))},
        world());
    train(other, alone, 4);
    for (const auto& [name, value] : alone.full_state("x")) EXPECT_TRUE(same_bits(value, x.at(name))) << name;
  }

  optimizer.save_checkpoint(scratch / "saved");
  export_safetensors(optimizer, scratch / "y.safetensors", "y");
  const auto saved = values_of(*net);
  train(net, optimizer, 3);
  optimizer.eval();
  for (const bool exported : {false, true}) {
    Net again;
    {
      const at::NoGradGuard no_grad;
      for (auto& item : again->named_parameters()) item.value().fill_(3);
    }
    AdamWScheduleFree resumed(*again, groups_of(again), world());
    if (exported) {
      import_safetensors(resumed, scratch / "y.safetensors");
    } else {
      resumed.load_checkpoint(scratch / "saved");
    }
    for (const auto& [name, value] : values_of(*again)) EXPECT_TRUE(same_bits(value, saved.at(name))) << name;
    if (exported) continue;
    train(again, resumed, 3);
    resumed.eval();
    for (const auto& [name, value] : values_of(*again)) {
      EXPECT_TRUE(same_bits(value, values_of(*net).at(name))) << name;
    }
  }
  // Strict: the optimizer of the whole module reads the same names.
  Net whole;
  AdamWScheduleFree of_all(*whole, world());
  import_safetensors(of_all, scratch / "y.safetensors");
  for (const auto& [name, value] : values_of(*whole)) EXPECT_TRUE(same_bits(value, saved.at(name))) << name;
}

TEST_F(Models, TwoOptimizersShareAModuleButNoParameter) {
  const Scratch scratch;
  const auto make = [&](Net& net) {
    return std::make_pair(
        std::make_unique<AdamWScheduleFree>(
            *net, std::vector<ParameterGroup>{ParameterGroup(net->body->named_parameters())}, world()),
        std::make_unique<SGD>(
            *net, std::vector<ParameterGroup>{ParameterGroup(net->head->named_parameters())}, world()));
  };
  const auto train_both = [&](Net& net, ShardedOptimizer& a, ShardedOptimizer& b, int64_t first) {
    for (int64_t step = first; step < first + 3; ++step) {
      a.zero_grad();
      b.zero_grad();
      net->forward(random_like(at::empty({6, 4}), step, rank, 0)).square().mean().backward();
      a.step();
      b.step();
    }
  };
  Net net;
  const auto [a, b] = make(net);
  train_both(net, *a, *b, 0);
  a->save_checkpoint(scratch / "a");
  b->save_checkpoint(scratch / "b");
  train_both(net, *a, *b, 3);

  Net again;
  const auto [c, d] = make(again);
  c->load_checkpoint(scratch / "a");
  d->load_checkpoint(scratch / "b");
  train_both(again, *c, *d, 3);
  for (const auto& item : net->named_parameters()) {
    EXPECT_TRUE(same_bits(item.value(), again->named_parameters()[item.key()])) << item.key();
  }
}

TEST_F(Models, GroupsMustBeOfTheModule) {
  Net net, other;
  const bool odd_one = rank == size - 1;
  expect_error(
      [&] {
        AdamWScheduleFree(*net,
            {ParameterGroup(net->head->named_parameters()),
                one("mine", odd_one ? other->body->weight : net->body->weight)},
            world());
      },
      {last, "parameter 'mine' of group 1 is not one of the module's"});
  expect_error([&] { AdamWScheduleFree({one("w", parameter({3}))}, {one("w", parameter({3}))}, world()); },
      {"not one of the module's"});
  expect_error(
      [&] {
        AdamWScheduleFree(*net, {one("a", net->body->weight), one("b", net->body->weight)}, world());
      },
      {"'b' of group 1 is also in group 0, as 'a'"});
}

TEST_F(Models, GroupsAloneWarnOfBuffers) {
  const NamedParameters parameters = make_parameters({{5}});
  Net net;
  Warnings warnings;
  { AdamWScheduleFree({ParameterGroup(parameters)}, world()); }
  EXPECT_EQ(warnings.with("AdamWScheduleFree(*module, groups, communicator)").size(), rank == 0 ? 1U : 0U);
  { SGD(*net, {ParameterGroup(net->named_parameters())}, world()); }
  { SGD(*net, world()); }
  EXPECT_EQ(warnings.with("(*module, groups, communicator)").size(), rank == 0 ? 1U : 0U);
}

TEST_F(Models, MemoryThatIsShared) {
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

TEST_F(Models, BuffersThatShareMemoryWithWhatIsTrained) {
  const Buffered fine(false, parameter({2, 3}));
  { const AdamWScheduleFree optimizer(fine, world()); }
  const Buffered wrong(rank == size - 1, parameter({2, 3}));
  expect_error([&] { AdamWScheduleFree(wrong, world()); }, {last, "parameter 'weight' and buffer 'copy'"});
}

TEST_F(Models, ATiedNameIsNobodyElses) {
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

TEST_F(Models, ABufferAndAParameterOfTheSameName) {
  expect_error([&] { AdamWScheduleFree(TwoOfAName(), world()); }, {"a parameter and a buffer", "'w'"});
}

TEST_F(Models, InferenceMode) {
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
TEST_F(Models, ComplexParametersTrainAsTheirRealView) {
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

TEST_F(Models, TwoOptimizersOfOneParameter) {
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

TEST_F(Models, AnOptimizerOverTheSameParametersReplacesTheFirst) {
  const Scratch scratch;
  for (const bool in_flight : {false, true}) {
    const NamedParameters parameters = make_parameters({{40}, {41}}), others = make_parameters({{40}, {41}});
    const auto make = [&](const NamedParameters& named) {
      return std::make_unique<AdamWScheduleFree>(
          std::vector<ParameterGroup>{ParameterGroup(named)}, world(), 0.1, buckets_of(1));
    };
    auto optimizer = make(parameters);
    backward(parameters, random_gradients(parameters, 0, rank));
    if (!in_flight) optimizer->step();
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

TEST_F(Models, Clamp) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const NamedParameters parameters = make_parameters({{5}, {6}});
  const ParameterGroup free(parameters);
  EXPECT_EQ(free.clamp_low(), -inf);
  EXPECT_EQ(free.clamp_high(), inf);
  const ParameterGroup boxed = ParameterGroup(parameters, AdamWScheduleFreeOptions(0.1)).clamp(-1, 2.5);
  ParameterGroup copy = free;
  copy = boxed;
  EXPECT_EQ(copy.clamp_low(), -1);
  EXPECT_EQ(copy.clamp_high(), 2.5);
  EXPECT_TRUE(copy.has_options());
  { const AdamWScheduleFree optimizer({ParameterGroup(parameters).clamp(0, inf)}, world()); }
  for (const auto& [low, high] :
      {std::make_pair(1.0, 0.5), {nan, 1.0}, {0.0, nan}, {inf, inf}, {-inf, -inf}}) {
    ParameterGroup wrong({parameters[1]});
    if (rank == size - 1) wrong.clamp(low, high);
    expect_error(
        [&] {
          AdamWScheduleFree({ParameterGroup({parameters[0]}), wrong}, world());
        },
        {last, "parameter group 1: clamp("});
  }
  if (size == 1) return;
  expect_error([&] { AdamWScheduleFree({ParameterGroup(parameters).clamp(0, rank == 0 ? 1 : 2)}, world()); },
      {"clamped to [0, 1]", "clamped to [0, 2]"});
}

TEST_F(Models, WarnsOfWhatWasRegisteredLater) {
  Net net;
  AdamWScheduleFree optimizer(*net, world());
  Warnings warnings;
  const std::string text = "the module was changed after its optimizer was constructed";
  optimizer.eval();
  optimizer.train();
  EXPECT_TRUE(warnings.with(text).empty());
  net->register_module("late", torch::nn::Linear(2, 2));
  net->replace_module("body", torch::nn::Linear(4, 5));
  for (int i = 0; i < 2; ++i) {  // once is enough
    optimizer.eval();
    optimizer.train();
  }
  const auto found = warnings.with(text);
  ASSERT_EQ(found.size(), rank == 0 ? 1U : 0U);
  if (rank != 0) return;
  EXPECT_NE(found[0].find("The module has 'body.weight', 'body.bias', 'late.weight', 'late.bias', which the "
                          "optimizer neither trains nor saves"),
      std::string::npos)
      << found[0];
  EXPECT_NE(found[0].find("no longer has 'body.weight', 'body.bias'"), std::string::npos) << found[0];
}

TEST_F(Models, WarnsOfWhatHasNoGradient) {
  const Scratch scratch;
  for (const bool overlaps : {true, false}) {
    Net net;
    AdamWScheduleFree optimizer(*net, world(), {}, ShardingOptions().overlap_backward(overlaps));
    net->head->weight = at::ones({3, 5});  // leaves the registered tensor behind
    Warnings warnings;
    const std::string text = "no step so far, on any rank, had a gradient of 'head.weight'. ";
    optimizer.eval();  // no step: nothing to say
    optimizer.train();
    EXPECT_TRUE(warnings.with("no step so far").empty());
    for (int64_t step = 0; step < 2; ++step) {
      optimizer.zero_grad();
      at::Tensor loss = net->body(at::ones({6, 4})).sum();
      // One rank alone uses the rest, which is enough.
      if (rank == size - 1) loss = net->forward(random_like(at::empty({6, 4}), step, rank, 0)).sum();
      loss.backward();
      optimizer.step();
    }
    optimizer.save_checkpoint(scratch / "saved");
    EXPECT_EQ(warnings.with(text).size(), rank == 0 ? 1U : 0U);
    optimizer.eval();
    EXPECT_EQ(warnings.with("no step so far").size(), rank == 0 ? 1U : 0U);
    optimizer.train();
  }
}

}  // namespace
}  // namespace zerosched::testing
