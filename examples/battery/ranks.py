#!/usr/bin/env python3
"""Trains each task with the same global batch on 1, 2 and 4 ranks and says how far the curves are apart.

usage: run --ranks [--task NAME] [--share N] [--sizes N...] [--dtype NAME] [--out FILE]

Schedule-Free with the middle learning rate of its grid, for T/N steps. What differs between numbers of ranks is the
order in which gradients, statistics and sums are added up. Networks amplify what that changes from step to step, in
float32 up to what anyone can see; in float64 it stays where a mistake cannot hide in it. So each task is trained in
float64 to compare the curves, and in float32 to see memory and time. Prints a table, and writes one JSON object per run
to FILE. Exit code 1: in float64 some point of a curve is further than LIMIT from that on one rank.
"""
import argparse
import json
import os
import subprocess
import sys

import origin
import plan
import prepare_data
from records import curve

# Relative. Sums in another order differ by 1e-16. The most sensitive of the networks, the CNN, makes 2e-2 of the 6e-8
# of float32, so 1e-10 may be seen; a mistake in what a rank adds has no reason to be as small as a hundred times that.
LIMIT = 1e-8

LAUNCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../launch/run")
SMOOTH = {"cnn": "cross_entropy"}  # what is compared instead of an error, which jumps from image to image


def run(program, data, task, share, ranks, dtype):
    """The program's lines: start, evaluations, end."""
    axis = task.lr["schedule-free"]
    settings = {"lr": axis.values[len(axis.values) // 2], **task.defaults, "dtype": dtype}
    arguments = plan.arguments(task, "schedule-free", task.steps // share, 0, settings)
    command = [LAUNCH, "-n", str(ranks), "--threads", "1", "--no-bind", program, "--data", data, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode != 0 or not lines or lines[-1]["kind"] != "end":
        sys.exit(f"battery: {task.name} on {ranks} ranks ended with exit code {result.returncode}:\n{result.stderr}")
    return lines


def differences(evaluations, alone, metric):
    """Of the metric at each point, relative to the run on one rank."""
    pairs = zip(curve({"evaluations": evaluations}, metric), curve({"evaluations": alone}, metric), strict=True)
    return [abs(value - expected) / abs(expected) for (_, value), (_, expected) in pairs]


def main():
    parser = argparse.ArgumentParser(prog="run --ranks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(plan.TASKS), help="only this one; may be repeated")
    parser.add_argument("--share", type=int, default=8, help="train for this share of T (default 8)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4], help="numbers of ranks to compare with one")
    parser.add_argument("--dtype", action="append", choices=["float64", "float32"], help="only this one")
    parser.add_argument("--out", help="file for JSON lines")
    parser.add_argument("--data", default=prepare_data.default_folder(), help="folder of the data")
    parser.add_argument("--program", required=True, help="the program battery")
    arguments = parser.parse_args()
    names = arguments.task or list(plan.TASKS)
    for name, message in prepare_data.prepare(arguments.data, names).items():
        sys.exit(f"battery: no data for {name}: {message}")

    records, failed = [], []
    print("| task | ranks | dtype | steps | metric at the end | largest difference to one rank | "
          "state per rank, bytes | peak memory per rank, MiB | ms per step |\n|---|---|---|---|---|---|---|---|---|")
    for name in names:
        task, metric = plan.TASKS[name], SMOOTH.get(name, plan.TASKS[name].metric)
        for dtype in arguments.dtype or ["float64", "float32"]:
            alone = None
            for ranks in (1, *arguments.sizes):
                start, *evaluations, end = run(arguments.program, arguments.data, task, arguments.share, ranks, dtype)
                alone = alone or evaluations
                found = differences(evaluations, alone, metric)
                if dtype == "float64" and not max(found) <= LIMIT:
                    failed.append(f"{name} on {ranks} ranks")
                last = evaluations[-1]["metrics"][metric]
                print(f"| {name} | {ranks} | {dtype} | {end['steps']} | {last:.6g} | {max(found):.1e} | "
                      f"{start['state_bytes']} | {end['peak_rss_mib']:.0f} | {1000 * end['step_s']:.2f} |", flush=True)
                records.append({**origin.origin(), "ranks": ranks, "differences": found, **start, **end,
                                "kind": "ranks", "evaluations": evaluations})
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    if failed:
        sys.exit(f"battery: further from one rank than summation explains: {', '.join(failed)}")


if __name__ == "__main__":
    main()
