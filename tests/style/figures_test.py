"""The pages' tables of what was measured are those that scripts make of the kept results.
usage: figures_test.py SOURCE_TREE"""
import json
import os
import sys

TREE = sys.argv[1]
sys.path[:0] = [os.path.join(TREE, "tests", "bench"), os.path.join(TREE, "examples", "battery")]
import compare_training  # noqa: E402
import table as battery  # noqa: E402
from records import NotRun  # noqa: E402

TRAINING, BATTERY = "tests/bench/results/training.jsonl", "examples/battery/results"


def of_training(make):
    with open(os.path.join(TREE, TRAINING), encoding="utf-8") as kept:
        return make([json.loads(line) for line in kept])


def missing(table, page):
    lines = page.splitlines()
    return [line for line in table.splitlines() if line and line not in lines]


def check(name, command, table):
    with open(os.path.join(TREE, name), encoding="utf-8") as page:
        text = page.read()
    if not missing(table + "\n| none has this |", text):
        sys.exit("FAILED: a line that is not there is found")
    if absent := missing(table, text):
        sys.exit(f"FAILED: {name} has not what {command} prints:\n" + "\n".join(absent))


TABLES = (("README.md", f"tests/bench/compare_training.py --readme {TRAINING}",
           lambda: of_training(compare_training.readme_table)),
          ("tests/README.md", f"tests/bench/compare_training.py --table {TRAINING}", lambda: of_training(compare_training.table)),
          ("README.md", f"examples/battery/table.py --readme {BATTERY}", lambda: battery.summary(os.path.join(TREE, BATTERY))))
done = []
for name, command, make in TABLES:
    try:
        table = make()
    except (FileNotFoundError, NotRun) as error:
        print(f"not compared: what {command} prints: {error}")
        continue
    check(name, command, table)
    done.append(command)
if not done:
    print("SKIPPED: no results are kept")
    sys.exit(77)
print(f"passed: {', '.join(done)}")
