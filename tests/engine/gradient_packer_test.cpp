// What a bucket's buffer holds when it leaves, in host memory and on a device, against loops over its elements.
#include "engine/gradient_packer.h"
#include "fakes/fake_kernels.h"
#include "fakes/fake_runtime.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <optional>
#include <random>

namespace zerosched::detail {
namespace {

constexpr int64_t kReportNumel = 64;

struct Case {
  Layout layout;
  std::vector<at::Tensor> gradients;  ///< by parameter; undefined: none
  double weight = 1;
  bool has_report = false;
};

Case make_case(at::ScalarType dtype, int64_t world_size, uint64_t seed) {
  std::mt19937_64 random(seed);
  Case made;
  std::vector<ParameterSpec> specs;
  for (int p = 0; p < 6; ++p) {
    const auto numel = static_cast<int64_t>(1 + random() % (p == 0 ? 900 : 90));
    specs.push_back({"p" + std::to_string(p), {numel}, {1}, dtype, 0});
    at::manual_seed(random());
    if (random() % 4 != 0)
      made.gradients.push_back(at::randn({numel}).to(dtype));
    else
      made.gradients.emplace_back();
  }
  LayoutOptions options;
  options.bucket_bytes = options.first_bucket_bytes = 1000;
  made.layout = make_layout(specs, options, world_size);
  made.weight = std::array<double, 3>{1, 3, 0}[random() % 3];
  made.has_report = random() % 2 == 0;
  return made;
}

int64_t slice_numel(const Case& c, const Bucket& bucket) {
  return bucket.gradient_slice_numel() + (c.has_report ? kReportNumel : 0);
}

std::vector<std::byte> report_of(const Case& c, const Bucket& bucket) {
  if (!c.has_report) return {};
  const at::Tensor values = at::arange(kReportNumel).to(bucket.reduce_dtype);
  const auto* bytes = static_cast<const std::byte*>(values.const_data_ptr());
  return {bytes, bytes + values.nbytes()};
}

// Element by element, from what layout.h says.
at::Tensor expected(const Case& c, const Bucket& bucket) {
  const int64_t world = c.layout.world_size;
  at::Tensor flat = at::zeros({world, slice_numel(c, bucket)}, bucket.reduce_dtype);
  for (int64_t slice = 0; slice < world; ++slice) {
    int64_t flag = 0;
    for (const Slot& slot : bucket.slots) {
      const at::Tensor& gradient = c.gradients[static_cast<size_t>(slot.parameter)];
      const bool counts = gradient.defined() && c.weight != 0;
      bool overlaps = false;
      for (int64_t i = 0; i < slot.numel; ++i) {
        const int64_t in_bucket = slot.offset + i;
        if (in_bucket / bucket.shard_numel != slice) continue;
        overlaps = true;
        if (!counts) continue;
        const at::Tensor wide = gradient[i].element_size() == 2 ? gradient[i].to(at::kFloat) : gradient[i];
        flat[slice][in_bucket % bucket.shard_numel] = wide * c.weight;
      }
      if (overlaps) flat[slice][bucket.shard_numel + flag++] = counts ? 1 : 0;
    }
    for (int64_t i = 0; c.has_report && i < kReportNumel; ++i) {
      flat[slice][bucket.gradient_slice_numel() + i] = i;
    }
  }
  return flat;
}

// Flags that belong to no parameter are nobody's business.
void expect_equal(const Case& c, const Bucket& bucket, const at::Tensor& flat, const std::string& what) {
  const at::Tensor found = flat.view({c.layout.world_size, slice_numel(c, bucket)}).clone();
  const at::Tensor wanted = expected(c, bucket);
  for (int64_t slice = 0; slice < c.layout.world_size; ++slice) {
    int64_t flags = 0;
    for (const Piece& piece : bucket.pieces) flags += piece.slice == slice ? 1 : 0;
    const auto unused = [&](at::Tensor t) {
      t[slice].narrow(0, bucket.shard_numel + flags, bucket.flag_numel - flags).zero_();
    };
    unused(found);
    unused(wanted);
  }
  EXPECT_TRUE(at::equal(found, wanted)) << what;
}

TEST(GradientPacker, HostBuffersHoldWhatTheLayoutSays) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (uint64_t seed = 0; seed < 30; ++seed) {
      const Case c = make_case(dtype, 1 + static_cast<int64_t>(seed % 5), seed);
      const auto packer = make_host_packer(c.layout, 0);
      for (size_t b = 0; b < c.layout.buckets.size(); ++b) {
        const Bucket& bucket = c.layout.buckets[b];
        OutgoingBucket out;
        out.bucket = static_cast<int64_t>(b);
        out.slice_numel = slice_numel(c, bucket);
        out.flat = at::full({c.layout.world_size * out.slice_numel}, 7, bucket.reduce_dtype);
        out.weight = c.weight;
        for (size_t s = bucket.slots.size(); s-- > 0;) {
          const at::Tensor& gradient = c.gradients[static_cast<size_t>(bucket.slots[s].parameter)];
          const bool is_finite = !gradient.defined() || packer->put(out, static_cast<int64_t>(s), gradient);
          EXPECT_TRUE(is_finite);
        }
        packer->finish(out, report_of(c, bucket).data());
        expect_equal(c, bucket, out.flat, "seed " + std::to_string(seed));
      }
    }
  }
}

TEST(GradientPacker, DeviceBuffersHoldTheSame) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (uint64_t seed = 0; seed < 30; ++seed) {
      const Case c = make_case(dtype, 1 + static_cast<int64_t>(seed % 5), seed);
      testing::FakeRuntime runtime(1, seed);
      testing::FakeKernels kernels(runtime);
      DeviceExecutor executor(runtime, 0);
      const auto packer = make_device_packer(c.layout, executor, kernels);
      for (size_t b = 0; b < c.layout.buckets.size(); ++b) {
        const Bucket& bucket = c.layout.buckets[b];
        OutgoingBucket out;
        out.bucket = static_cast<int64_t>(b);
        for (size_t s = 0; s < bucket.slots.size(); ++s) {
          const at::Tensor& gradient = c.gradients[static_cast<size_t>(bucket.slots[s].parameter)];
          if (gradient.defined()) packer->put(out, static_cast<int64_t>(s), runtime.to_device(gradient));
        }
        packer->seal(out.bucket);
        out.slice_numel = slice_numel(c, bucket);
        out.weight = c.weight;
        const auto beside = executor.beside(false);
        out.flat = runtime.empty(c.layout.world_size * out.slice_numel, bucket.reduce_dtype, 0);
        packer->finish(out, report_of(c, bucket).data());
        expect_equal(c, bucket, runtime.to_host(out.flat), "seed " + std::to_string(seed));
      }
    }
  }
}

// In host memory the bucket says who had a gradient that is not finite.
TEST(GradientPacker, HostBuffersNameTheRankOfWhatIsNotFinite) {
  Case c = make_case(at::kFloat, 3, 1);
  c.has_report = false;
  const Bucket& bucket = c.layout.buckets.front();
  const int64_t numel = bucket.slots.front().numel;
  const auto packer = make_host_packer(c.layout, 2);
  for (const bool finite : {false, true}) {
    OutgoingBucket out;
    out.slice_numel = bucket.gradient_slice_numel();
    out.flat = at::empty({3 * out.slice_numel});
    at::Tensor gradient = at::ones({numel});
    if (!finite) gradient[numel - 1] = std::numeric_limits<double>::infinity();
    EXPECT_EQ(packer->put(out, 0, gradient), finite);
    packer->finish(out, nullptr);
    for (int64_t slice = 0; slice < 3; ++slice) {
      const at::Tensor flags = out.flat.view({3, -1})[slice].narrow(0, bucket.shard_numel, bucket.flag_numel);
      EXPECT_EQ(flags[bucket.not_finite_flag()].item<float>(), finite ? 0 : 1);
      EXPECT_EQ(flags[bucket.not_finite_rank_flag()].item<float>(), finite ? 0 : 2);
    }
    packer->reset();
  }
}

}  // namespace
}  // namespace zerosched::detail
