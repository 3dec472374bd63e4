"""Includes point one way: io -> engine -> optim, comm, layout -> kernels -> device, with session over comm; and what
users include brings no vendor's header but in the two headers that are about it.

usage: includes_test.py SOURCE_TREE
"""
import os
import re
import sys
import tempfile

# Per folder of src/: the folders that it may include besides itself.
ARROWS = {
    "device": set(),
    "kernels": {"device"},
    "layout": {"kernels"},
    "optim": {"kernels"},
    "comm": {"kernels", "device"},
    "engine": {"optim", "comm", "layout", "kernels", "device"},
    "io": {"engine", "optim", "comm", "layout", "kernels", "device"},
    "session": {"comm", "device"},
    "precompiled.h": set(),
}
# Per folder: the public headers that it may include; folders that are not here may include all but those of sessions.
SESSION = {"session.h", "stop_signal.h"}
TRANSPORTS = {"export.h", "communicator.h", "mpi_communicator.h", "nccl_communicator.h"}
PUBLIC = {"device": {"export.h"}, "kernels": {"export.h"}, "layout": {"export.h"}, "comm": TRANSPORTS,
          "session": TRANSPORTS | SESSION}
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


def complaints(tree):
    found = []
    source = os.path.join(tree, "src")
    for path in files_below(source):
        name = os.path.relpath(path, tree)
        area = os.path.relpath(path, source).split(os.sep)[0]
        if area not in ARROWS:
            found.append(f"{name}: there are no arrows for src/{area}; add it to {os.path.basename(__file__)}")
            continue
        for mark, header in includes_of(path):
            other = header.split("/")[0]
            if mark == '"' and other in ARROWS and other != area and other not in ARROWS[area]:
                found.append(f"{name}: {area} must not include {header}")
            elif mark == '"' and not os.path.exists(os.path.join(source, header)):
                found.append(f'{name}: "{header}" is not a path below src/')
            if other == "zerosched":
                public = header.split("/", 1)[1]
                if public not in PUBLIC.get(area, {public} - SESSION):
                    found.append(f"{name}: {area} must not include <{header}>")
    public_folder = os.path.join(tree, "include", "zerosched")
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
        ("src/engine/a.cu", '  #  include "io/checkpoint.h"', "engine must not include io/checkpoint.h"),
        ("src/engine/a.h", "#include <zerosched/session.h>", "engine must not include <zerosched/session.h>"),
        ("src/kernels/a.h", "#include <zerosched/communicator.h>", "kernels must not include <zerosched/communicator.h>"),
        ("src/engine/a.cpp", '#include "helper.h"', "not a path below src/"),
        ("src/helpers/a.h", "", "there are no arrows for src/helpers"),
        ("include/zerosched/a.h", "#include <mpi.h>", "users would need mpi.h"),
        ("include/zerosched/a.h", "#include <ATen/cuda/CUDAContext.h>", "users would need ATen/cuda/CUDAContext.h"),
        ("include/zerosched/a.h", '#include "comm/agree.h"', "is not installed"),
        ("include/zerosched/zerosched.h", "#include <zerosched/mpi_communicator.h>", "brings a vendor's header"),
    ]
    right = [("include/zerosched/mpi_communicator.h", "#include <mpi.h>"),
             ("src/session/a.cpp", "#include <zerosched/session.h>"), ("src/io/a.cpp", "#include <vector>")]
    for path, text, expected in [*wrong, *((path, text, None) for path, text in right)]:
        with tempfile.TemporaryDirectory() as tree:
            for made in (path, "src/engine/engine.h", "src/comm/agree.h", "src/io/checkpoint.h"):
                os.makedirs(os.path.dirname(os.path.join(tree, made)), exist_ok=True)
                with open(os.path.join(tree, made), "a", encoding="utf-8") as file:
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
