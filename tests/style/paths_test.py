"""Paths of the tree that CONTRIBUTING.md and README.md name in backticks exist. usage: paths_test.py SOURCE_TREE"""
import glob
import os
import re
import sys
import tempfile

def pages(tree):
    found = glob.glob("**/README.md", root_dir=tree, recursive=True)
    return ["CONTRIBUTING.md", *(page for page in sorted(found) if not page.startswith("build/"))]


# A command in backticks may name several. What lies below another folder, as in build/release/src/..., is none.
PATH = re.compile(r"(?<![\w./$~<-])(?:src|tests|include|launch|examples|docker|\.ci)/[\w./*-]*")


def named(text):
    """(line, path) of each; code in backticks ends with its paragraph, blocks of code are left out."""
    text = re.sub(r"^```.*?^```", lambda block: "\n" * block.group().count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    for code in re.finditer(r"`((?:[^`\n]|\n(?!\n))+)`", text):
        for path in PATH.finditer(code.group(1)):
            yield text.count("\n", 0, code.start(1) + path.start()) + 1, path.group().rstrip(".")


def complaints(tree, page, text):
    return [f"{page}:{line}: there is no {path}" for line, path in named(text)
            if not glob.glob(os.path.join(tree, path))]


def self_test():
    """What is missing must be found out, however it is named, and what is there must not."""
    right = ("`src/a.cpp`", "`src/`", "`src/*.cpp`", "`.ci/run -L x`", "src/b.cpp without backticks",
             "`build/src/b.cpp`", "`<src/b.h>`", "`launch/run src/a.cpp`", "`x` src/b.cpp `y`", "```\nsrc/b.cpp\n```")
    wrong = (("`src/b.cpp`", 1, "src/b.cpp"), ("`src/a.cpp` and\n`src/b/`", 2, "src/b/"),
             ("`src/a.cpp/`", 1, "src/a.cpp/"), ("`. launch/b && launch/run`", 1, "launch/b"),
             ("`launch/run\nlaunch/c x`", 2, "launch/c"), ("`src/*.cu`", 1, "src/*.cu"),
             ("```\n`src/b.cpp`\n```\n`.ci/b`", 4, ".ci/b"), ("`A=src/b.cpp`", 1, "src/b.cpp"),
             ("A lone ` here.\n\n`src/b.cpp`", 3, "src/b.cpp"))
    with tempfile.TemporaryDirectory() as tree:
        for path in ("src/a.cpp", "launch/run", ".ci/run"):
            os.makedirs(os.path.dirname(os.path.join(tree, path)), exist_ok=True)
            with open(os.path.join(tree, path), "w", encoding="ascii"):
                pass
        cases = [*((text, []) for text in right),
                 *((text, [f"page:{line}: there is no {path}"]) for text, line, path in wrong)]
        for text, expected in cases:
            found = complaints(tree, "page", text)
            if found != expected:
                sys.exit(f"FAILED: of '{text}' the check says {found}, not {expected}")


if __name__ == "__main__":
    self_test()
    TREE = sys.argv[1]
    FOUND = []
    for PAGE in pages(TREE):
        with open(os.path.join(TREE, PAGE), encoding="utf-8") as FILE:
            FOUND += complaints(TREE, PAGE, FILE.read())
    if len(pages(TREE)) < 5:
        sys.exit(f"FAILED: {TREE} has the pages {pages(TREE)} only")
    if FOUND:
        sys.exit("FAILED:\n" + "\n".join(FOUND))
