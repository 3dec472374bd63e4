#!/usr/bin/env python3
"""Makes the table of the comparison from its results.

usage: table.py [--quick] FOLDER [TASK...]    prints it, and writes FOLDER/table.md
       table.py --readme FOLDER               prints what README has of it
"""
import argparse
import os

import plan
from records import Comparison, NotRun, Records, done

EXPLANATION = """
Values after T/8, T/4, T/2 and T steps, ± the standard deviation over seeds; less is better. Schedule-Free is one run
per seed, tuned for T alone, and so are its extremes and relatives; each schedule is tuned at each length. Settings in
brackets are those at T: learning rate, weight decay, beta2 and what a relative has besides, and of how many that were
tried they are the best; * is an end of the values tried.
Verdict: "below" where Schedule-Free's mean is at most that of the better schedule, "above, in noise" where it is above
by at most the pooled deviation. Settings are chosen by the first metric, which is named with the task.
"""
NAMES = {"schedule-free": "Schedule-Free", "polyak": "Polyak averaging (beta1 0)",
         "primal": "primal averaging (beta1 1)"}


def number(value):
    return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.4f}"


def values(chosen, steps, metric=None):
    deviation = f" ± {number(chosen.deviation(steps, metric))}" if len(chosen.runs) > 1 else ""
    return number(chosen.mean(steps, metric)) + deviation


def settings(chosen):
    chosen_values = ", ".join(f"{value:g}{'*' * (name in chosen.at_end)}" for name, value in chosen.settings.items())
    return f"[{chosen_values}; {chosen.tried}]"


def rows(task, records, is_quick):
    """Of one task, one line per arm and metric; NotRun if Schedule-Free or a schedule is not done."""
    lengths, runs = plan.lengths(task, is_quick), list(records.runs.values())
    comparison = Comparison(task, runs, plan.SCHEDULES, lengths)
    others = done(task, runs, (*plan.EXTREMES, *task.relatives))
    chosen = {"schedule-free": dict.fromkeys(lengths, comparison.schedule_free), **comparison.scheduled,
              **{arm: dict.fromkeys(lengths, other) for arm, other in others.items()}}
    names = {**NAMES, **{arm: relative.title for arm, relative in task.relatives.items()}}
    yield [f"**{task.title}**, {task.metric_title}, T = {task.steps}, seeds: {task.seeds}"] + [""] * (len(lengths) + 1)
    for arm, by_length in chosen.items():
        yield [names.get(arm, arm), *(values(by_length[steps], steps) for steps in lengths),
               settings(by_length[lengths[-1]])]
    yield ["verdict", *(comparison.verdict(steps) for steps in lengths), ""]
    if task.second:
        metric, title = task.second
        for arm in ("schedule-free", *plan.SCHEDULES):
            yield [f"{title}, {names.get(arm, arm)}",
                   *(values(chosen[arm][steps], steps, metric) for steps in lengths), ""]


def summary(folder):
    """README's table: of each task and length Schedule-Free and the better schedule."""
    marks = {"below": "", "above, in noise": " ~", "above": " >"}
    lines = [["Schedule-Free / the better schedule", "T/8", "T/4", "T/2", "T"], ["---"] * 5]
    for task in plan.TASKS.values():
        lengths = plan.lengths(task, False)
        comparison = Comparison(task, list(Records(folder, task.name).runs.values()), plan.SCHEDULES, lengths)
        lines.append([f"{task.title}; {task.metric_title}",
                      *(f"{number(comparison.schedule_free.mean(steps))} / {number(comparison.front(steps).mean(steps))}"
                        f"{marks[comparison.verdict(steps)]}" for steps in lengths)])
    return in_markdown(lines)


def in_markdown(lines):
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def made(folder, tasks):
    """One line on when, by what and where the runs of these tasks were made, and what they took."""
    runs = [run for task in tasks for run in Records(folder, task.name).runs.values()]
    dates = sorted(run["date"][:10] for run in runs)
    commits, machines = (", ".join(sorted({str(run[name]) for run in runs})) for name in ("commit", "machine"))
    hours = sum(run["cpu_s"] for run in runs) / 3600
    if not runs:
        return ""
    period = " to ".join(sorted({dates[0], dates[-1]}))
    return f"{len(runs)} runs, {hours:.2g} CPU hours, {period}, commit {commits}, on {machines}.\n"


def write(folder, tasks, is_quick):
    """The text, which is written to FOLDER/table.md, too."""
    lengths = ["T/2", "T"] if is_quick else ["T/8", "T/4", "T/2", "T"]
    lines = [["", *lengths, "settings"], ["---"] * (len(lengths) + 2)]
    for task in tasks:
        try:
            lines += rows(task, Records(folder, task.name), is_quick)
        except NotRun as error:
            lines.append([f"**{task.title}**: {error}"] + [""] * (len(lengths) + 1))
    text = in_markdown(lines) + EXPLANATION + "\n" + made(folder, tasks)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    return text


def make_parser():
    """Of the arguments that this script and figures.py take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="of a comparison that was run with --quick")
    parser.add_argument("folder", help="that --out named")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(plan.TASKS))
    return parser


def parse(parser):
    """With the tasks themselves, all if none is named."""
    arguments = parser.parse_args()
    unknown = [name for name in arguments.tasks if name not in plan.TASKS]
    if unknown:
        parser.error(f"there is no task {unknown[0]}, but {', '.join(plan.TASKS)}")
    tasks = [plan.TASKS[name] for name in arguments.tasks or plan.TASKS]
    arguments.tasks = [plan.quick(task) for task in tasks] if arguments.quick else tasks
    return arguments


def main():
    parser = make_parser()
    parser.add_argument("--readme", action="store_true", help="print what README has of it instead")
    arguments = parse(parser)
    if arguments.readme:
        print(summary(arguments.folder), end="")
    else:
        print(write(arguments.folder, arguments.tasks, arguments.quick))


if __name__ == "__main__":
    main()
