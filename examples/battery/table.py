#!/usr/bin/env python3
"""Makes the table of the comparison from its results.

usage: table.py [--quick] FOLDER [TASK...]    prints it, and writes FOLDER/table.md
"""
import argparse
import os

import plan
from records import Comparison, Records

EXPLANATION = """
Values after T/8, T/4, T/2 and T steps, ± the standard deviation over seeds; less is better. Schedule-Free is one run
per seed, tuned for T alone; each schedule is tuned at each length. Settings in brackets are at T: the learning rate,
weight decay and beta2 chosen, of how many tried there. Verdict: "below" where Schedule-Free's mean is at most that of
the better schedule, "above, in noise" where it is above by at most the pooled deviation.
"""


def number(value):
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.4f}"


def values(chosen, steps):
    deviation = f" ± {number(chosen.deviation(steps))}" if len(chosen.runs) > 1 else ""
    return number(chosen.mean(steps)) + deviation


def settings(chosen):
    return f"[{', '.join(f'{value:g}' for value in chosen.settings.values())}; {chosen.tried}]"


def rows(task, records, is_quick):
    """Of one task, one line per arm; without those arms that are not done."""
    lengths = plan.lengths(task, is_quick)
    comparison = Comparison(task, list(records.runs.values()), plan.SCHEDULES, lengths)
    yield [f"**{task.title}**, {task.metric_title}, T = {task.steps}, seeds: {task.seeds}"] + [""] * (len(lengths) + 1)
    chosen = comparison.schedule_free
    yield ["Schedule-Free", *(values(chosen, steps) for steps in lengths), settings(chosen)]
    for schedule, by_length in comparison.scheduled.items():
        yield [schedule, *(values(by_length[steps], steps) for steps in lengths), settings(by_length[lengths[-1]])]
    yield ["verdict", *(comparison.verdict(steps) for steps in lengths), ""]


def write(folder, tasks, is_quick):
    """The text, which is written to FOLDER/table.md, too."""
    lengths = ["T/2", "T"] if is_quick else ["T/8", "T/4", "T/2", "T"]
    lines = [["", *lengths, "settings"], ["---"] * (len(lengths) + 2)]
    for task in tasks:
        try:
            lines += rows(task, Records(folder, task.name), is_quick)
        except LookupError as error:
            lines.append([f"**{task.title}**: {error}"] + [""] * (len(lengths) + 1))
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n" + EXPLANATION
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    return text


def parse():
    """The arguments that this script and figures.py take: folder, tasks, whether they are the quick ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="of a comparison that was run with --quick")
    parser.add_argument("folder", help="that --out named")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(plan.TASKS))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.tasks if name not in plan.TASKS]
    if unknown:
        parser.error(f"there is no task {unknown[0]}, but {', '.join(plan.TASKS)}")
    tasks = [plan.TASKS[name] for name in arguments.tasks or plan.TASKS]
    return arguments.folder, [plan.quick(task) for task in tasks] if arguments.quick else tasks, arguments.quick


if __name__ == "__main__":
    print(write(*parse()))
