"""Doxygen reads the public headers without a warning. usage: docs_test.py SOURCE_TREE"""
import os
import shutil
import subprocess
import sys
import tempfile


def doxygen(tree, *more):
    with open(os.path.join(tree, "Doxyfile"), encoding="utf-8") as file:
        settings = file.read()
    with tempfile.TemporaryDirectory() as output:
        return subprocess.run(["doxygen", "-"], input="\n".join([settings, f"OUTPUT_DIRECTORY={output}", *more]), cwd=tree,
                              capture_output=True, text=True)


if __name__ == "__main__":
    TREE = sys.argv[1]
    if shutil.which("doxygen") is None:
        print("SKIPPED: doxygen is missing")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "bad.h"), "w", encoding="ascii") as header:
            header.write("#pragma once\n/// @param b is not a parameter\nvoid function(int a);\n")
        if doxygen(TREE, f"INPUT={folder}").returncode == 0:
            sys.exit("FAILED: a comment on a parameter that is not there passes")
    RESULT = doxygen(TREE)
    print(RESULT.stderr)
    sys.exit(RESULT.returncode)
