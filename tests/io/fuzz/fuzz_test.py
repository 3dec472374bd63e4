"""Builds the fuzzer of the readers with clang, and runs it for a bounded time from a few whole files.

usage: fuzz_test.py SECONDS CLANG LIBRARY_DIR INCLUDE_DIR...
"""
import os
import re
import subprocess
import sys
import tempfile

import job

SECONDS, CLANG, LIBRARIES = sys.argv[1:4]
INCLUDES = sys.argv[4:]
SOURCE = os.environ["ZEROSCHED_SOURCE_DIR"]
SOURCES = ["src/io/job_identity.cpp", "src/io/json.cpp", "src/io/manifest.cpp", "src/io/manifest_members.cpp",
           "src/io/piece_name.cpp", "src/io/safetensors.cpp", "tests/io/fuzz/fuzz_formats.cpp"]
HEADER = '{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
MANIFEST = """{"format":"zerosched checkpoint","version":1,"library_version":"0.1.0","created":1,"world_size":1,
"optimizer":"SGD","groups":[{"options":[["lr",0.1],["momentum","inf"]],"k":3,"weight_sum":0.5,"lr_max":-1,"y_weight":0}],
"parameters":[{"name":"w","shape":[2,3],"strides":[3,1],"dtype":"BF16","group":0}],"tied":{"u":"w"},
"files":{"rank_00000.safetensors":{"bytes":100,"xxh3":{"x:0-6:w":"0123456789abcdef"}},
"module.safetensors":{"bytes":8,"xxh3":{}}},"shared":{"position":{"epoch":3}},"local":[{"a":[1,null]}]}"""
FLAGS = ["-std=c++17", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-DNDEBUG",
         f"-I{SOURCE}/src", *[f"-isystem{path}" for path in INCLUDES]]


def clang(*arguments):
    done = subprocess.run([CLANG, *FLAGS, *arguments], stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    if done.returncode != 0:
        if "libclang_rt.fuzzer" in done.stderr:
            job.skip("clang is here without its libFuzzer; install libclang-rt-14-dev")
        raise AssertionError(done.stderr)


def compiled(folder, name, text=None):
    """The object file of a source, or of `text` in its place."""
    source, built = os.path.join(SOURCE, name), os.path.join(folder, os.path.basename(name) + ".o")
    if text is not None:
        source = os.path.join(folder, os.path.basename(name))
        with open(source, "w", encoding="utf-8") as file:
            file.write(text)
    clang("-c", source, "-o", built)
    return built


def linked(folder, objects):
    program = os.path.join(folder, "fuzz_formats")
    clang(*objects.values(), "-o", program, f"-L{LIBRARIES}", "-lc10", f"-Wl,-rpath,{LIBRARIES}", "-Wl,--allow-shlib-undefined")
    return program


def with_defect(folder, objects, name, old, new):
    """`objects` with a mistake in one of the sources, which the fuzzer must find."""
    with open(os.path.join(SOURCE, name), encoding="utf-8") as file:
        text = file.read()
    if old not in text:
        raise AssertionError(f"{name} no longer has: {old}")
    return {**objects, name: compiled(folder, name, text.replace(old, new))}


def run(program, folder, seconds):
    corpus = os.path.join(folder, "corpus")
    os.makedirs(corpus)
    for name, text in (("header", HEADER), ("manifest", MANIFEST), ("name", "z:0-4096:blocks.3.weight")):
        with open(os.path.join(corpus, name), "w", encoding="utf-8") as file:
            file.write(text)
    environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=1", UBSAN_OPTIONS="print_stacktrace=1")
    return subprocess.run([program, corpus, f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048",
                           "-seed=1"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, errors="replace",
                          check=False, timeout=seconds + 120)


def main():
    if not os.access(CLANG, os.X_OK):
        job.skip("clang++ is not installed")
    with tempfile.TemporaryDirectory() as objects_folder:
        objects = {name: compiled(objects_folder, name) for name in SOURCES}
        with tempfile.TemporaryDirectory() as folder:
            result = run(linked(folder, objects), folder, int(SECONDS))
            print(result.stderr[-1500:])
            if result.returncode != 0:
                sys.exit("the fuzzer found something")
            accepted = [int(count) for count in re.findall(r"accepted: (\d+) headers, (\d+) manifests, (\d+) names",
                                                           result.stderr)[-1]]
            if min(accepted) == 0:
                sys.exit("the fuzzer never got as far as a whole file")
        # Would it find a mistake? A reader that believes whatever offsets a header gives must be caught.
        defect = ("src/io/safetensors.cpp", " || entry.end - entry.begin != byte_count_of(entry)", "")
        with tempfile.TemporaryDirectory() as folder:
            result = run(linked(folder, with_defect(folder, objects, *defect)), folder, 60)
            if result.returncode == 0 or "tensors have the bytes of their shape" not in result.stderr:
                sys.exit("a reader that does not compare sizes was not caught:\n" + result.stderr[-1500:])


main()
