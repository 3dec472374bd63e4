#!/usr/bin/env python3
"""Trains each task with the same global batch on 1, 2 and 4 ranks and says how far the curves are apart.

usage: run --ranks [--task NAME] [--share N] [--out FILE]

Schedule-Free with the middle learning rate of its grid, for T/N steps. What differs between numbers of ranks is the
order in which gradients, statistics and sums are added up. What that does by itself, which networks amplify from step
to step, is shown by a run on one rank with every batch in the opposite order. Prints a table, and writes one JSON
object per run to FILE. Exit code 1: some point of a curve is further from that on one rank than ten times as far as
the flipped one was there or before, and than 1e-5.
"""
import argparse
import itertools
import json
import os
import subprocess
import sys

import comparison
import plan
import prepare_data
from records import curve

LAUNCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../launch/run")
SMOOTH = {"cnn": "cross_entropy"}  # what is compared instead of an error, which jumps from image to image


def run(program, data, task, share, ranks, *further):
    """The program's lines: start, evaluations, end."""
    axis = task.lr["schedule-free"]
    settings = {"lr": axis.values[len(axis.values) // 2], **task.defaults}
    arguments = plan.arguments(task, "schedule-free", task.steps // share, 0, settings)
    command = [LAUNCH, "-n", str(ranks), "--threads", "1", "--no-bind", program, "--data", data, *arguments, *further]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode != 0 or not lines or lines[-1]["kind"] != "end":
        sys.exit(f"battery: {task.name} on {ranks} ranks ended with exit code {result.returncode}:\n{result.stderr}")
    return lines


def differences(evaluations, alone, metric):
    """Of the metric at each point, relative to the run on one rank."""
    pairs = zip(curve({"evaluations": evaluations}, metric), curve({"evaluations": alone}, metric), strict=True)
    return [abs(value - expected) / abs(expected) for (_, value), (_, expected) in pairs]


def explained(found, flipped):
    """Whether the order of addition explains the differences: at each point by what it had done there or before."""
    return all(difference <= max(1e-5, 10 * largest)
               for difference, largest in zip(found, itertools.accumulate(flipped, max)))


def main():
    parser = argparse.ArgumentParser(prog="run --ranks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(plan.TASKS), help="only this one; may be repeated")
    parser.add_argument("--share", type=int, default=8, help="train for this share of T (default 8)")
    parser.add_argument("--out", help="file for JSON lines")
    parser.add_argument("--data", default=prepare_data.default_folder(), help="folder of the data")
    parser.add_argument("--program", required=True, help="the program battery")
    arguments = parser.parse_args()
    names = arguments.task or list(plan.TASKS)
    for name, message in prepare_data.prepare(arguments.data, names).items():
        sys.exit(f"battery: no data for {name}: {message}")

    records, failed = [], []
    print("| task | ranks | steps | metric at the end | largest difference to one rank | state per rank, bytes | "
          "peak memory per rank, MiB | ms per step |\n|---|---|---|---|---|---|---|---|")
    for name in names:
        task, alone, flipped = plan.TASKS[name], None, None
        for ranks, further in ((1, ()), (1, ("--flip-batches",)), (2, ()), (4, ())):
            start, *evaluations, end = run(arguments.program, arguments.data, task, arguments.share, ranks, *further)
            alone = alone or evaluations
            metric = SMOOTH.get(name, task.metric)
            found = differences(evaluations, alone, metric)
            if further:
                flipped = found
            elif ranks > 1 and not explained(found, flipped):
                failed.append(f"{name} on {ranks} ranks")
            last = evaluations[-1]["metrics"][metric]
            print(f"| {name} | {ranks}{', flipped' * bool(further)} | {end['steps']} | {last:.6g} | {max(found):.1e} | "
                  f"{start['state_bytes']} | {end['peak_rss_mib']:.0f} | {1000 * end['step_s']:.2f} |", flush=True)
            records.append({"commit": comparison.commit(), "machine": comparison.machine(), "ranks": ranks,
                            "flipped": bool(further), "differences": found, **start, **end, "kind": "ranks",
                            "evaluations": evaluations})
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    if failed:
        sys.exit(f"battery: further from one rank than summation explains: {', '.join(failed)}")


if __name__ == "__main__":
    main()
