"""The pages' tables of measured training steps are those that their script makes of the kept results.
usage: figures_test.py SOURCE_TREE"""
import json
import os
import sys

TREE = sys.argv[1]
sys.path.insert(0, os.path.join(TREE, "tests", "bench"))
import compare_training  # noqa: E402

RESULTS = "tests/bench/results/training.jsonl"


def missing(table, page):
    lines = page.splitlines()
    return [line for line in table.splitlines() if line and line not in lines]


if not os.path.exists(os.path.join(TREE, RESULTS)):
    print(f"SKIPPED: {RESULTS} is not there: tests/bench/compare_training.py --all --out {RESULTS}")
    sys.exit(77)
with open(os.path.join(TREE, RESULTS), encoding="utf-8") as kept:
    ROWS = [json.loads(line) for line in kept]
for name, option, table in (("README.md", "--readme", compare_training.readme_table(ROWS)),
                            ("tests/README.md", "--table", compare_training.table(ROWS))):
    with open(os.path.join(TREE, name), encoding="utf-8") as page:
        text = page.read()
    if not missing(table + "\n| none has this |", text):
        sys.exit("FAILED: a line that is not there is found")
    if absent := missing(table, text):
        sys.exit(f"FAILED: {name} has not what tests/bench/compare_training.py {option} {RESULTS} prints:\n" + "\n".join(absent))
print(f"passed: {len(ROWS)} rows")
