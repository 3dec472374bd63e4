"""Every shell script passes shellcheck. usage: shell_test.py SOURCE_TREE"""
import os
import shutil
import subprocess
import sys
import tempfile

FOLDERS = ("launch", "tests", "docker", "examples", ".ci")


def is_shell(path):
    with open(path, "rb") as file:
        return file.readline().startswith((b"#!/usr/bin/env bash", b"#!/bin/bash", b"#!/bin/sh"))


def scripts(tree):
    for folder in FOLDERS:
        for parent, _, names in os.walk(os.path.join(tree, folder)):
            for name in sorted(names):
                path = os.path.join(parent, name)
                if os.path.isfile(path) and is_shell(path):
                    yield path


def shellcheck(tree, paths):
    return subprocess.run(["shellcheck", *paths], cwd=tree, capture_output=True, text=True)


if __name__ == "__main__":
    TREE = sys.argv[1]
    if shutil.which("shellcheck") is None:
        print("SKIPPED: shellcheck is missing")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        bad = os.path.join(folder, "bad")
        with open(bad, "w", encoding="ascii") as file:
            file.write("#!/usr/bin/env bash\nrm -rf $1/x\n")
        if not is_shell(bad) or shellcheck(folder, [bad]).returncode == 0:
            sys.exit("FAILED: a bad script passes")
    PATHS = list(scripts(TREE))
    for expected in ("launch/setup", "tests/run", ".ci/run"):
        if os.path.join(TREE, expected) not in PATHS:
            sys.exit(f"FAILED: {expected} is not among the scripts: {PATHS}")
    RESULT = shellcheck(TREE, PATHS)
    print(RESULT.stdout)
    sys.exit(RESULT.returncode)
