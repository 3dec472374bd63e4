"""Includes point one way: api -> io -> engine -> optim, comm, layout -> kernels -> device, with session over comm and base
below all; those of public headers count as arrows to the folder that implements them. What users include brings no
vendor's header but in the two headers that are about it.

usage: includes_test.py SOURCE_TREE
"""
import os
import re
import sys
import tempfile

# Per folder of src/: the folders that it may include besides itself and base.
ARROWS = {
    "base": set(),
    "device": set(),
    "kernels": {"device"},
    "layout": {"kernels"},
    "optim": {"kernels"},
    "comm": {"kernels", "device"},
    "engine": {"optim", "comm", "layout", "kernels", "device"},
    "io": {"engine", "optim", "comm", "layout", "kernels", "device"},
    "session": {"comm", "device"},
    "api": {"io", "engine", "optim", "comm", "layout", "kernels", "device"},
    "precompiled.h": set(),
}
# Where public headers are implemented that have no source file of their name; None: in themselves.
IMPLEMENTED = {"checkpoint_data.h": None, "clip_grad.h": "api", "error.h": None, "exit_codes.h": None, "export.h": None,
               "optimizer_of.h": "api", "sharding_options.h": None, "timings.h": "engine", "zerosched.h": "api"}
VENDOR = re.compile(r"mpi\.h|nccl|cuda|cublas|c10/cuda/|ATen/cuda/|torch/csrc/")
MAY_NAME_VENDOR = {"mpi_communicator.h", "nccl_communicator.h"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def files_below(folder):
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            if name.endswith((".h", ".cpp", ".cu", ".cuh")):
                yield os.path.join(parent, name)


def includes_of(path):
    with open(path, encoding="utf-8") as file:
        return INCLUDE.findall(file.read())


def folder_of(public, source):
    """The folder of src/ that implements a public header, or None; of two, the one on top. KeyError: it is not known."""
    wanted = public.removesuffix(".h") + ".cpp"
    areas = {os.path.relpath(path, source).split(os.sep)[0] for path in files_below(source) if os.path.basename(path) == wanted}
    return max(areas, key=list(ARROWS).index) if areas else IMPLEMENTED[public]


def complaints(tree):
    found = []
    source = os.path.join(tree, "src")
    public_folder = os.path.join(tree, "include", "zerosched")
    implemented = {}
    for path in files_below(public_folder):
        name = os.path.basename(path)
        try:
            implemented[name] = folder_of(name, source)
        except KeyError:
            found.append(f"include/zerosched/{name}: no source file has its name; say in {os.path.basename(__file__)} what "
                         "implements it")
    for path in files_below(source):
        name = os.path.relpath(path, tree)
        area = os.path.relpath(path, source).split(os.sep)[0]
        if area not in ARROWS:
            found.append(f"{name}: there are no arrows for src/{area}; add it to {os.path.basename(__file__)}")
            continue
        for mark, header in includes_of(path):
            other = header.split("/")[0]
            allowed = ARROWS[area] | {area, "base"}
            if mark == '"' and other in ARROWS and other not in allowed:
                found.append(f"{name}: {area} must not include {header}")
            elif mark == '"' and not os.path.exists(os.path.join(source, header)):
                found.append(f'{name}: "{header}" is not a path below src/')
            if other == "zerosched":
                owner = implemented.get(header.split("/", 1)[1])
                if owner is not None and owner not in allowed:
                    found.append(f"{name}: {area} must not include <{header}>, which {owner} implements")
    for path in files_below(public_folder):
        name = os.path.relpath(path, tree)
        for mark, header in includes_of(path):
            if mark == '"':
                found.append(f'{name}: "{header}" is not installed; public headers include <...> only')
            if VENDOR.match(header) and os.path.basename(path) not in MAY_NAME_VENDOR:
                found.append(f"{name}: users would need {header}")
            if os.path.basename(path) == "zerosched.h" and os.path.basename(header) in MAY_NAME_VENDOR:
                found.append(f"{name}: includes {header}, which brings a vendor's header")
    return found


def self_test():
    """Trees with one wrong include each must be found out, and one without must not."""
    wrong = [
        ("src/kernels/a.h", '#include "engine/engine.h"', "kernels must not include engine/engine.h"),
        ("src/layout/a.cpp", '#include "comm/agree.h"', "layout must not include comm/agree.h"),
        ("src/comm/mpi/a.cpp", '#include "engine/engine.h"', "comm must not include engine/engine.h"),
        ("src/base/a.h", '#include "comm/agree.h"', "base must not include comm/agree.h"),
        ("src/engine/a.cu", '  #  include "io/checkpoint.h"', "engine must not include io/checkpoint.h"),
        ("src/engine/a.h", "#include <zerosched/session.h>", "engine must not include <zerosched/session.h>, which session"),
        ("src/engine/a.h", "#include <zerosched/optimizer_of.h>", "engine must not include <zerosched/optimizer_of.h>, which api"),
        ("src/io/a.h", "#include <zerosched/sharded.h>", "io must not include <zerosched/sharded.h>, which api"),
        ("src/kernels/a.h", "#include <zerosched/communicator.h>", "which comm implements"),
        ("src/engine/a.cpp", '#include "helper.h"', "not a path below src/"),
        ("src/helpers/a.h", "", "there are no arrows for src/helpers"),
        ("include/zerosched/unknown.h", "", "no source file has its name"),
        ("include/zerosched/sharded.h", "#include <mpi.h>", "users would need mpi.h"),
        ("include/zerosched/sharded.h", "#include <ATen/cuda/CUDAContext.h>", "users would need ATen/cuda/CUDAContext.h"),
        ("include/zerosched/sharded.h", '#include "comm/agree.h"', "is not installed"),
        ("include/zerosched/zerosched.h", "#include <zerosched/mpi_communicator.h>", "brings a vendor's header"),
    ]
    right = [("include/zerosched/mpi_communicator.h", "#include <mpi.h>"), ("src/api/a.cpp", '#include "io/checkpoint.h"'),
             ("src/session/a.cpp", "#include <zerosched/session.h>"), ("src/io/a.cpp", "#include <vector>")]
    there = ("src/engine/engine.h", "src/comm/agree.h", "src/io/checkpoint.h", "src/api/sharded.cpp", "src/session/session.cpp",
             "src/comm/communicator.cpp", "src/comm/mpi/mpi_communicator.cpp", "include/zerosched/sharded.h",
             "include/zerosched/session.h", "include/zerosched/communicator.h", "include/zerosched/optimizer_of.h")
    for path, text, expected in [*wrong, *((path, text, None) for path, text in right)]:
        with tempfile.TemporaryDirectory() as tree:
            for made in (*there, path):
                os.makedirs(os.path.dirname(os.path.join(tree, made)), exist_ok=True)
                with open(os.path.join(tree, made), "w", encoding="utf-8") as file:
                    file.write(text + "\n" if made == path else "")
            found = complaints(tree)
            if expected is None and found or expected is not None and not (len(found) == 1 and expected in found[0]):
                sys.exit(f"FAILED: of {path} with '{text}' the check says {found}, not {expected}")


if __name__ == "__main__":
    self_test()
    TREE = sys.argv[1]
    if not os.path.isdir(os.path.join(TREE, "src", "engine")):
        sys.exit(f"FAILED: {TREE} is not zerosched's source tree")
    FOUND = complaints(TREE)
    if FOUND:
        sys.exit("FAILED:\n" + "\n".join(FOUND))
