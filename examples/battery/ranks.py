#!/usr/bin/env python3
"""Trains each task with the same global batch on 1, 2 and 4 ranks and says how far the curves are apart.

usage: run --ranks [--task NAME] [--share N] [--tolerance X] [--out FILE]

Schedule-Free with the middle learning rate of its grid, for T/N steps. What differs between numbers of ranks is the order
in which gradients, statistics and sums are added up. Prints a table, and writes one JSON object per run to FILE.
Exit code 1: somewhere the metric differs from that on one rank by more than the tolerance, relative to it.
"""
import argparse
import json
import os
import subprocess
import sys

import comparison
import plan
import prepare_data
from records import curve

LAUNCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../launch/run")
WORLDS = (1, 2, 4)


def run(program, data, task, share, ranks):
    """The program's lines: start, evaluations, end."""
    axis = task.lr["schedule-free"]
    settings = {"lr": axis.values[len(axis.values) // 2], **task.defaults}
    arguments = plan.arguments(task, "schedule-free", task.steps // share, 0, settings)
    result = subprocess.run([LAUNCH, "-n", str(ranks), "--threads", "1", "--no-bind", program, "--data", data, *arguments],
                            capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode != 0 or not lines or lines[-1]["kind"] != "end":
        sys.exit(f"battery: {task.name} on {ranks} ranks ended with exit code {result.returncode}:\n{result.stderr}")
    return lines


def largest_difference(evaluations, alone, metric):
    """Of the metric on all points, relative to the run on one rank."""
    pairs = zip(curve({"evaluations": evaluations}, metric), curve({"evaluations": alone}, metric), strict=True)
    return max(abs(value - expected) / abs(expected) for (_, value), (_, expected) in pairs)


def main():
    parser = argparse.ArgumentParser(prog="run --ranks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(plan.TASKS), help="only this one; may be repeated")
    parser.add_argument("--share", type=int, default=8, help="train for this share of T (default 8)")
    parser.add_argument("--tolerance", type=float, default=0.02, help="largest relative difference (default 0.02)")
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
        task, alone = plan.TASKS[name], None
        for ranks in WORLDS:
            start, *evaluations, end = run(arguments.program, arguments.data, task, arguments.share, ranks)
            alone = alone or evaluations
            difference = largest_difference(evaluations, alone, task.metric)
            if not difference <= arguments.tolerance:
                failed.append(f"{name} on {ranks} ranks")
            last = evaluations[-1]["metrics"][task.metric]
            print(f"| {name} | {ranks} | {end['steps']} | {last:.6g} | {difference:.1e} | {start['state_bytes']} | "
                  f"{end['peak_rss_mib']:.0f} | {1000 * end['step_s']:.2f} |", flush=True)
            records.append({"commit": comparison.commit(), "machine": comparison.machine(), "ranks": ranks,
                            "largest_difference": difference, **start, **end, "kind": "ranks",
                            "evaluations": evaluations})
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    if failed:
        sys.exit(f"battery: further from one rank than {arguments.tolerance}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
