"""Every type at namespace scope, of the public headers or of the library's sources, has a name that no other has.

usage: names_test.py SOURCE_TREE
"""
import collections
import os
import re
import sys
import tempfile

DEFINITION = re.compile(
    r"^(?:template <[^>]*>\s*)?(?:class|struct|enum class)\s+(?:ZEROSCHED_EXPORT\s+)?(\w+)(?!\w|::)(?:\s+final)?"
    r"\s*(?::[^;{]*)?\{", re.MULTILINE)


def complaints(tree):
    files = collections.defaultdict(list)
    for folder in ("include", "src"):
        for parent, _, names in os.walk(os.path.join(tree, folder)):
            for name in names:
                if not name.endswith((".h", ".cpp", ".cu", ".cuh")):
                    continue
                path = os.path.join(parent, name)
                with open(path, encoding="utf-8") as file:
                    for defined in DEFINITION.findall(file.read()):
                        files[defined].append(os.path.relpath(path, tree))
    return [f"{name}: defined in {' and in '.join(sorted(where))}" for name, where in sorted(files.items()) if len(where) > 1]


def self_test():
    for second, expected in (("class Group final : public Base {\n", ["Group: defined in include/a.h and in src/b.cpp"]),
                             ("class Group;\n", []), ("class Other {\n  struct Group {\n", [])):
        with tempfile.TemporaryDirectory() as tree:
            for path, text in (("include/a.h", "struct Group {\n"), ("src/b.cpp", second)):
                os.makedirs(os.path.join(tree, os.path.dirname(path)), exist_ok=True)
                with open(os.path.join(tree, path), "w", encoding="utf-8") as file:
                    file.write(text)
            if complaints(tree) != expected:
                sys.exit(f"FAILED: of '{second}' the check says {complaints(tree)}, not {expected}")


if __name__ == "__main__":
    self_test()
    FOUND = complaints(sys.argv[1])
    if FOUND:
        sys.exit("FAILED: types of one name:\n" + "\n".join(FOUND))
