// Safetensors headers, manifests and the names of pieces: what is written is read back, and nothing else is
// accepted.
#include "io/checksum.h"
#include "io/json.h"
#include "io/manifest.h"
#include "io/piece_name.h"
#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace zerosched::detail {
namespace {

std::string message_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

void expect_error(const std::function<void()>& function, const std::string& part) {
  const std::string message = message_of(function);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

/// A file of `header` and `data_bytes` bytes of data, of which only the header exists.
SafetensorsHeader parse(const std::string& header, uint64_t data_bytes, int64_t length_off_by = 0) {
  std::string bytes;
  const uint64_t length = header.size() + static_cast<uint64_t>(length_off_by);
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>((length >> (8 * i)) & 0xff);
  return parse_safetensors_header(bytes + header, 8 + header.size() + data_bytes);
}

TEST(Safetensors, ReadsWhatItWrites) {
  std::vector<SafetensorsEntry> entries = {{"b", c10::ScalarType::Float, {2, 3}},
      {"a\n\"ä", c10::ScalarType::BFloat16, {}}, {"empty", c10::ScalarType::Long, {0, 7}},
      {"c", c10::ScalarType::Bool, {5}}};
  const std::string header = make_safetensors_header(entries, {{"format", "pt"}});
  EXPECT_EQ(header.size() % 8, 0U);
  const SafetensorsHeader parsed = parse_safetensors_header(header, header.size() + 24 + 2 + 5);
  EXPECT_EQ(parsed.data_begin, header.size());
  EXPECT_EQ(parsed.metadata.at("format"), "pt");
  ASSERT_EQ(parsed.entries.size(), entries.size());
  for (const SafetensorsEntry& entry : parsed.entries) {
    bool found = false;
    for (const SafetensorsEntry& written : entries) {
      if (written.name != entry.name) continue;
      found = true;
      EXPECT_EQ(entry.dtype, written.dtype);
      EXPECT_EQ(entry.shape, written.shape);
      EXPECT_EQ(entry.begin, written.begin);
      EXPECT_EQ(entry.end, written.end);
    }
    EXPECT_TRUE(found) << entry.name;
  }
}

TEST(Safetensors, RefusesWhatIsNotWhole) {
  const std::string one = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_EQ(parse(one, 8).entries.size(), 1U);
  EXPECT_EQ(parse("{}", 0).entries.size(), 0U);
  expect_error([&] { parse(one, 7); }, "end at byte");
  expect_error([&] { parse(one, 9); }, "end at byte");
  expect_error([&] { parse(one, 8, 100); }, "header would be");
  expect_error([&] { parse(one, 8, std::numeric_limits<int64_t>::max()); }, "header would be");
  expect_error([&] { parse(one, 8, -1); }, "not JSON");
  expect_error([&] { parse_safetensors_header("short", 5); }, "5 bytes");
  const std::vector<std::pair<std::string, std::string>> bad = {{"[]", "not a JSON object"},
      {R"({"a":1})", "not an object"},
      {R"({"a":{"shape":[2],"data_offsets":[0,8]}})", "dtype of tensor 'a' is missing"},
      {R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", "unknown: F33"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", "shape of tensor 'a'"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "not of sizes"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "not of sizes"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}})", "too large"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "do not fit"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "do not fit"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
          "overlap"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "gap"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
          "'a' appears twice"},
      {R"({"__metadata__":{"k":1},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
          "'k' is not text"}};
  for (const auto& [header, part] : bad) {
    const std::string text = header;
    expect_error([&] { parse(text, 8); }, part);
  }
}

Manifest some_manifest() {
  Manifest manifest;
  manifest.library_version = "1.2.3";
  manifest.created = 1234567890123456789;
  manifest.world_size = 2;
  manifest.optimizer = "AdamWScheduleFree";
  manifest.groups.push_back(
      {{{"lr", 0.1}, {"beta1", 1.0 / 3}}, {7, 1e-300, -1, 2.5, std::numeric_limits<double>::infinity()}});
  manifest.parameters.push_back({"w", {3, 4}, {4, 1}, c10::ScalarType::BFloat16, 0});
  manifest.tied["tied"] = "w";
  for (const char* name : {"rank_00000.safetensors", "rank_00001.safetensors", "module.safetensors"}) {
    manifest.files[name] = {100, {{"z:0-6:w", "0123456789abcdef"}}};
  }
  manifest.shared_json["position"] = R"({"epoch":3})";
  manifest.local_json = {{{"a", "1"}}, {}};
  return manifest;
}

TEST(Manifest, ReadsWhatItWrites) {
  const Manifest manifest = some_manifest();
  const Manifest read = parse_manifest(to_json(manifest));
  EXPECT_EQ(read.library_version, manifest.library_version);
  EXPECT_EQ(read.created, manifest.created);
  EXPECT_EQ(read.world_size, 2);
  EXPECT_EQ(read.optimizer, manifest.optimizer);
  ASSERT_EQ(read.groups.size(), 1U);
  EXPECT_EQ(read.groups[0].options, manifest.groups[0].options);
  EXPECT_EQ(read.groups[0].state.k, 7);
  EXPECT_EQ(read.groups[0].state.weight_sum, 1e-300);
  EXPECT_EQ(read.groups[0].state.lr_max, -1);
  EXPECT_EQ(read.groups[0].state.gradient_l1, 2.5);
  EXPECT_EQ(read.groups[0].state.y_weight, std::numeric_limits<double>::infinity());
  ASSERT_EQ(read.parameters.size(), 1U);
  EXPECT_EQ(read.parameters[0].name, "w");
  EXPECT_EQ(read.parameters[0].sizes, manifest.parameters[0].sizes);
  EXPECT_EQ(read.parameters[0].strides, manifest.parameters[0].strides);
  EXPECT_EQ(read.parameters[0].dtype, c10::ScalarType::BFloat16);
  EXPECT_EQ(read.tied, manifest.tied);
  EXPECT_EQ(read.files.at("module.safetensors").checksums, manifest.files.at("module.safetensors").checksums);
  EXPECT_EQ(read.shared_json, manifest.shared_json);
  EXPECT_EQ(read.local_json, manifest.local_json);
  EXPECT_EQ(to_json(read), to_json(manifest));
}

TEST(Manifest, ThatIsCutAnywhereIsRefused) {
  const std::string text = to_json(some_manifest());
  for (size_t length = 0; length + 2 < text.size(); ++length) {
    expect_error([&] { parse_manifest(text.substr(0, length)); }, "not");
  }
}

TEST(Manifest, LacksNoRank) {
  Manifest manifest = some_manifest();
  manifest.files.erase("rank_00001.safetensors");
  expect_error([&] { parse_manifest(to_json(manifest)); }, "lacks rank_00001");
  manifest = some_manifest();
  manifest.files["rank_00002.safetensors"] = {};
  expect_error([&] { parse_manifest(to_json(manifest)); }, "do not belong");
  manifest = some_manifest();
  manifest.local_json.pop_back();
  expect_error([&] { parse_manifest(to_json(manifest)); }, "'local'");
  manifest = some_manifest();
  manifest.parameters[0].group = 1;
  expect_error([&] { parse_manifest(to_json(manifest)); }, "'group'");
}

TEST(Json, IsStrict) {
  EXPECT_EQ(parse_json(R"({"a":{"b":1},"b":[{"a":1},{"a":2}]})").size(), 2U);
  expect_error([] { parse_json(R"({"a":{"b":1,"b":2}})"); }, "'b' appears twice");
  expect_error([] { parse_json(std::string(300, '[') + std::string(300, ']')); }, "nested too deeply");
  expect_error([] { parse_json("{} {}"); }, "not JSON");
  expect_error([] { check_json({{"good", "1"}, {"bad", "{"}}); }, "'bad'");
}

TEST(PieceName, ReadsWhatItWrites) {
  const PieceName name{"z", 5, 1234567890123, "a:b-c:d"};
  const auto read = parse_piece_name(to_text(name));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->state, "z");
  EXPECT_EQ(read->begin, 5);
  EXPECT_EQ(read->end, 1234567890123);
  EXPECT_EQ(read->parameter, "a:b-c:d");
  for (const char* bad : {"", ":", "z", "z:", "z:0", "z:0-", "z:0-5", "z:-1-5:w", "z:+1-5:w", "z:0--5:w",
           "z:5-5:w", "z:6-5:w", ":0-5:w", "z:0-5 :w", "z: 0-5:w", "z:0-99999999999999999999:w"}) {
    EXPECT_FALSE(parse_piece_name(bad)) << bad;
  }
}

// Digests of the xxHash specification's own test vectors, XXH3 with 64 bits and no seed.
TEST(Checksum, IsXxh3) {
  EXPECT_EQ(Checksum().text(), "2d06800538d394c2");
  std::string bytes(1 << 20, 'x');
  Checksum at_once, in_parts;
  at_once.add(bytes.data(), bytes.size());
  for (size_t at = 0; at < bytes.size(); at += 1000)
    in_parts.add(bytes.data() + at, std::min<size_t>(1000, bytes.size() - at));
  EXPECT_EQ(at_once.text(), in_parts.text());
}

}  // namespace
}  // namespace zerosched::detail
