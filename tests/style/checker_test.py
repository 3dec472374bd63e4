""".ci/style finds badly formatted lines everywhere, and clang-tidy's complaints in what changed and nothing else.

usage: checker_test.py SOURCE_TREE
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

TREE = sys.argv[1]
GOOD = "int twice(int a) { return 2 * a; }\n"
UGLY = "int   thrice( int a ){return 3*a;}\n"
WRONG = "int* nothing() { return 0; }\n"


def write(tree, path, text):
    os.makedirs(os.path.dirname(os.path.join(tree, path)), exist_ok=True)
    with open(os.path.join(tree, path), "w", encoding="ascii") as file:
        file.write(text)


def git(tree, *arguments):
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test", *arguments], cwd=tree, check=True,
                   capture_output=True)


def style(changes):
    """Of a tree with a wrong src/old.cpp, in which files of the last of 12 commits got text appended."""
    with tempfile.TemporaryDirectory() as tree:
        for path in (".clang-format", ".clang-tidy", ".ci/style"):
            os.makedirs(os.path.dirname(os.path.join(tree, path)), exist_ok=True)
            shutil.copy(os.path.join(TREE, path), os.path.join(tree, path))
        write(tree, "build/release/compile_commands.json", json.dumps(
            [{"directory": tree, "file": f"src/{name}.cpp", "command": f"g++ -std=c++17 -I{tree}/src -c src/{name}.cpp"}
             for name in ("a", "old")]))
        texts = {"src/a.cpp": '#include "b.h"\n', "src/b.h": "#pragma once\n", "src/old.cpp": WRONG}
        for path, text in texts.items():
            write(tree, path, text)
        git(tree, "init")
        git(tree, "add", ".")
        git(tree, "commit", "-m", "before")
        for number in range(10):
            git(tree, "commit", "--allow-empty", "-m", str(number))
        for path, text in changes.items():
            write(tree, path, texts[path] + text)
        git(tree, "commit", "-a", "-m", "after")
        result = subprocess.run([os.path.join(tree, ".ci/style")], capture_output=True, text=True)
        return result.returncode, result.stdout + result.stderr


if __name__ == "__main__":
    CODE, OUTPUT = style({"src/a.cpp": GOOD})
    if CODE == 77:
        print(OUTPUT)
        sys.exit(77)
    if CODE != 0:
        sys.exit(f"FAILED: a good change is refused:\n{OUTPUT}")
    BAD_INLINE = WRONG.replace("int*", "inline int*")
    for BAD, EXPECTED in (({"src/a.cpp": UGLY}, "not formatted"), ({"src/a.cpp": WRONG}, "modernize-use-nullptr"),
                          ({"src/b.h": BAD_INLINE}, "modernize-use-nullptr")):
        CODE, OUTPUT = style(BAD)
        if CODE == 0 or EXPECTED not in OUTPUT:
            sys.exit(f"FAILED: {BAD} gives exit code {CODE} and not '{EXPECTED}':\n{OUTPUT}")
