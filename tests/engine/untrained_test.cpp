// Warnings of what a user believes to train and does not.
#include "engine/toy.h"
#include "engine/warnings.h"
#include "io/scratch.h"
#include "support/world.h"

#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

namespace zerosched::testing {
namespace {

struct NetImpl : torch::nn::Module {
  NetImpl() {
    body = register_module("body", torch::nn::Linear(4, 5));
    head = register_module("head", torch::nn::Linear(5, 3));
  }
  at::Tensor forward(const at::Tensor& input) { return head(body(input).relu()); }
  torch::nn::Linear body{nullptr}, head{nullptr};
};
TORCH_MODULE(Net);

class Untrained : public ::testing::Test {
 protected:
  const int size = world()->size();
  const int rank = world()->rank();
};

TEST_F(Untrained, WarnsOfWhatWasRegisteredLater) {
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

TEST_F(Untrained, WarnsOfWhatHasNoGradient) {
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
