"""Doxygen reads the public headers without a warning, of which what has no comment is one. usage: docs_test.py SOURCE_TREE"""
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
        for bad, what in (("/// @param b is not a parameter\n  void function(int a);", "a comment on a parameter that is not there"),
                          ("void function(int a);", "a function without a comment")):
            with open(os.path.join(folder, "bad.h"), "w", encoding="ascii") as header:
                header.write(f"#pragma once\n/// A struct.\nstruct Bad {{\n  {bad}\n}};\n")
            if doxygen(TREE, f"INPUT={folder}").returncode == 0:
                sys.exit(f"FAILED: {what} passes")
    RESULT = doxygen(TREE)
    print(RESULT.stderr)
    sys.exit(RESULT.returncode)
