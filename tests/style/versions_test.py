"""CMakeLists.txt, CITATION.cff and the changelog speak of the same version. usage: versions_test.py SOURCE_TREE"""
import os
import re
import sys


def found(tree, name, pattern):
    """The first match; None if there is none."""
    with open(os.path.join(tree, name), encoding="utf-8") as file:
        match = re.search(pattern, file.read(), re.MULTILINE)
    return match and match.group(1)


def complaints(library, citation, changelog):
    """`changelog`: the newest version that it has; None before the first release."""
    wrong = [] if citation == library else [f"CITATION.cff says {citation}, CMakeLists.txt {library}"]
    numbers = lambda version: [int(number) for number in version.split(".")]
    if changelog is not None and numbers(changelog) > numbers(library):
        wrong.append(f"CHANGELOG.md has {changelog}, CMakeLists.txt {library}")
    return wrong


if __name__ == "__main__":
    TREE = sys.argv[1]
    # Each kind of difference is seen.
    if complaints("1.2.0", "1.1.0", None) == [] or complaints("1.9.0", "1.9.0", "1.10.0") == []:
        sys.exit("FAILED: a difference passes")
    WRONG = complaints(found(TREE, "CMakeLists.txt", r"^project\(zerosched VERSION ([\d.]+)"),
                       found(TREE, "CITATION.cff", r"^version: ([\d.]+)$"),
                       found(TREE, "CHANGELOG.md", r"^## \[(\d+\.\d+\.\d+)\]"))
    print("\n".join(WRONG))
    sys.exit(1 if WRONG else 0)
