// A box constraint on the iterate: z in the box after every step, x and y means of such, as a plain reference has them.
#include "engine/toy.h"
#include "io/scratch.h"
#include "support/world.h"

#include <zerosched/adamw.h>
#include <zerosched/sgd_schedulefree.h>

#include <limits>

namespace zerosched::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// Reference with a box: Schedule-Free AdamW line by line, z clamped before it is averaged.
class BoxedReference {
 public:
  BoxedReference(const NamedParameters& parameters, double low, double high) : low_(low), high_(high) {
    for (const auto& [name, parameter] : parameters) {
      const at::Tensor start = parameter.detach().to(at::kDouble).clamp(low, high);
      state_[name] = {start.clone(), start.clone(), at::zeros_like(start), start.clone()};
    }
  }
  void step(const Gradients& gradients, double lr) {
    ++k_;
    const double weight = lr * lr;
    weight_sum_ += weight;
    const double c = weight / weight_sum_;
    for (const auto& [name, gradient] : gradients) {
      auto& [z, x, v, y] = state_.at(name);
      v = 0.999 * v + 0.001 * gradient * gradient;
      const at::Tensor u =
          gradient / ((v / (1 - std::pow(0.999, static_cast<double>(k_)))).sqrt() + 1e-8) + 0.1 * y;
      z = (z - lr * u).clamp(low_, high_);
      x = (1 - c) * x + c * z;
      y = 0.9 * x + 0.1 * z;
    }
  }
  at::Tensor get(const std::string& which, const std::string& name) const {
    const auto& state = state_.at(name);
    return state[which == "z" ? 0 : which == "x" ? 1 : which == "v" ? 2 : 3];
  }

 private:
  std::map<std::string, std::array<at::Tensor, 4>> state_;
  double low_, high_, weight_sum_ = 0;
  int64_t k_ = 0;
};

TEST(Clamp, FollowsTheReferenceInItsGroupAlone) {
  const int size = world()->size();
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    for (const bool overlap : {true, false}) {
      for (const auto& [low, high] :
          std::vector<std::pair<double, double>>{{-0.5, 0.25}, {-kInf, 0.1}, {0.2, kInf}}) {
        const NamedParameters boxed = {{"a", make_parameters({{40}, {7, 3}}, dtype)[0].second},
            {"b", make_parameters({{40}, {7, 3}}, dtype)[1].second}};
        const NamedParameters free = {{"c", make_parameters({{33}}, dtype)[0].second}};
        BoxedReference in_box(boxed, low, high), outside(free, -kInf, kInf);
        AdamWScheduleFree optimizer({ParameterGroup(boxed).clamp(low, high), ParameterGroup(free)}, world(),
            AdamWScheduleFreeOptions(0.1).weight_decay(0.1), buckets_of(200).overlap_backward(overlap));
        for (const auto& named : boxed) {
          EXPECT_TRUE((named.second >= low).logical_and(named.second <= high).all().item<bool>())
              << "from the start";
        }
        NamedParameters all = boxed;
        all.insert(all.end(), free.begin(), free.end());
        for (int64_t step = 0; step < 8; ++step) {
          optimizer.zero_grad();
          backward(all, random_gradients(all, step, world()->rank()));
          optimizer.step();
          Gradients mean = mean_gradients(size, [&](int r) { return random_gradients(all, step, r); });
          const Gradients of_free = {{"c", mean.at("c")}};
          mean.erase("c");
          in_box.step(mean, 0.1);
          outside.step(of_free, 0.1);
        }
        const double tolerance = dtype == at::kDouble ? 1e-12 : 4e-6;
        for (const auto& [which, tensors] : full_state(optimizer)) {
          for (const auto& [name, tensor] : tensors) {
            const at::Tensor expected = (name == "c" ? outside : in_box).get(which, name);
            const double error = (tensor.to(at::kDouble) - expected).abs().max().item<double>();
            EXPECT_LE(error, tolerance * std::max(1.0, expected.abs().max().item<double>())) << which << name;
            if (name == "c" || which == "v") continue;
            EXPECT_TRUE((tensor >= low).logical_and(tensor <= high).all().item<bool>()) << which << name;
          }
        }
        const auto evaluation = optimizer.eval_scope();
      }
    }
  }
}

TEST(Clamp, HoldsForTheFamilyAndAfterAReset) {
  const NamedParameters a = make_parameters({{50}}), b = make_parameters({{50}});
  SGDScheduleFree sgd({ParameterGroup(a).clamp(-0.1, 0.1)}, world(), SGDScheduleFreeOptions(1.0));
  AdamW adamw({ParameterGroup(b).clamp(-0.1, 0.1)}, world(), AdamWOptions(0.5));
  const auto largest = [](const NamedParameters& of) { return of[0].second.abs().max().item<float>(); };
  for (int64_t step = 0; step < 4; ++step) {
    backward(a, random_gradients(a, step, world()->rank()));
    sgd.step();
    backward(b, random_gradients(b, step, world()->rank()));
    adamw.step();
    EXPECT_LE(largest(a), 0.1F);
    EXPECT_LE(largest(b), 0.1F);
  }
  {
    const at::NoGradGuard no_grad;
    at::Tensor(a[0].second).fill_(3);
  }
  sgd.reset_from_parameters();
  EXPECT_EQ(largest(a), 0.1F);
}

TEST(Clamp, HoldsForStatesThatWereSavedWithoutIt) {
  const Scratch scratch;
  const NamedParameters a = make_parameters({{50}}), b = make_parameters({{50}});
  AdamWScheduleFree free({ParameterGroup(a)}, world()), boxed({ParameterGroup(b).clamp(-0.1, 0.1)}, world());
  backward(a, random_gradients(a, 0, world()->rank()));
  free.step();
  free.save_checkpoint(scratch / "a");
  boxed.load_checkpoint(scratch / "a");
  for (const char* which : {"z", "x", "y"}) {
    EXPECT_LE(boxed.full_state(which).at("p0").abs().max().item<float>(), 0.1F) << which;
  }
}

TEST(Clamp, AnInfiniteBoxChangesNoBit) {
  const NamedParameters a = make_parameters(odd_shapes()), b = make_parameters(odd_shapes());
  AdamWScheduleFree boxed({ParameterGroup(a).clamp(-kInf, kInf)}, world()),
      plain({ParameterGroup(b)}, world());
  for (int64_t step = 0; step < 3; ++step) {
    backward(a, random_gradients(a, step, world()->rank()));
    boxed.step();
    backward(b, random_gradients(b, step, world()->rank()));
    plain.step();
  }
  expect_same_bits(full_state(boxed), full_state(plain));
}

}  // namespace
}  // namespace zerosched::testing
