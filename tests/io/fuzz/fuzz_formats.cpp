// What libFuzzer makes of the readers of files: any bytes are read as a safetensors header, as a manifest and
// as the name of a piece. Nothing may crash, and what is accepted must come back the same after it is
// written.
#include "io/manifest.h"
#include "io/piece_name.h"
#include "io/safetensors.h"

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace {

using namespace zerosched::detail;

int64_t accepted_headers = 0, accepted_manifests = 0, accepted_names = 0;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::abort();
}

template <typename Parse>
void tolerate_errors(Parse&& parse) {
  try {
    parse();
  } catch (const std::runtime_error&) {
    // the only kind that readers may throw
  }
}

void read_header(const std::string& bytes, uint64_t data_bytes) {
  tolerate_errors([&] {
    if (bytes.size() < 8) return;
    const uint64_t file_bytes = bytes.size() + data_bytes;
    safetensors_header_bytes(bytes.data(), file_bytes);
    const SafetensorsHeader header = parse_safetensors_header(bytes, file_bytes);
    uint64_t end = 0;
    for (const SafetensorsEntry& entry : header.entries) {
      require(entry.begin == end && entry.end >= entry.begin, "tensors lie one after the other");
      end = entry.end;
      uint64_t bytes = c10::elementSize(entry.dtype);
      for (const int64_t size : entry.shape) bytes *= static_cast<uint64_t>(size);
      require(entry.byte_count() == bytes, "tensors have the bytes of their shape");
    }
    require(header.data_begin + end == file_bytes, "tensors fill the file");
    std::vector<SafetensorsEntry> entries = header.entries;
    const std::string written = make_safetensors_header(entries, header.metadata);
    const SafetensorsHeader again = parse_safetensors_header(written, written.size() + end);
    require(again.entries.size() == entries.size() && again.metadata == header.metadata, "headers come back");
    ++accepted_headers;
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  // As a file, and as a header whose length is right and whose data has 24 bytes: random lengths never fit.
  read_header(bytes, 0);
  std::string with_length;
  for (int i = 0; i < 8; ++i) with_length += static_cast<char>((size >> (8 * i)) & 0xff);
  read_header(with_length + bytes, 24);

  tolerate_errors([&] {
    const Manifest manifest = parse_manifest(bytes);
    const std::string written = to_json(manifest);
    require(to_json(parse_manifest(written)) == written, "manifests come back");
    ++accepted_manifests;
  });

  if (const auto name = parse_piece_name(bytes)) {
    const auto again = parse_piece_name(to_text(*name));
    require(again && again->state == name->state && again->begin == name->begin && again->end == name->end &&
                again->parameter == name->parameter,
        "names come back");
    ++accepted_names;
  }
  return 0;
}

// libFuzzer's exit does not run at_exit handlers in all of its modes, but it destroys statics when it ends by
// itself.
static const struct Report {
  ~Report() {
    std::fprintf(stderr, "accepted: %lld headers, %lld manifests, %lld names\n",
        static_cast<long long>(accepted_headers), static_cast<long long>(accepted_manifests),
        static_cast<long long>(accepted_names));
  }
} report;
