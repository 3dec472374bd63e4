"""What the progress thread takes from backward, on a machine with at least two cores: two ranks that share each core with
their progress threads, bound and not bound, against two trainings of one rank each at the same time, which send nothing.

usage: compare_backward.py [--bin FOLDER] [--rounds 5] [--steps 20]

The milliseconds are of backward without what hooks do themselves (collecting gradients, which the world of one does too).
"""
import argparse
import json
import os
import statistics
import subprocess

from compare_training import ENVIRONMENT, ROOT, trainer


def backward_ms(*commands):
    """The mean over the ranks of all jobs, which run at the same time."""
    jobs = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for command in commands]
    printed = [job.communicate(timeout=600)[0] for job in jobs]
    if any(job.returncode for job in jobs):
        raise SystemExit(f"one of {commands} failed")
    means = [rank["mean_s"] for out in printed for rank in json.loads(out.strip().splitlines()[-1])["ranks"]]
    return statistics.mean(mean["backward"] - mean["collect_gradients"] for mean in means) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build/release/bin"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    o = parser.parse_args()
    train = trainer(o.bin, "19m", o.steps)
    run = [os.path.join(ROOT, "launch", "run"), "-n", "2", "--threads", "1"]
    cases = {"two worlds of one": [["taskset", "-c", str(core), *train] for core in (0, 1)],
             "two ranks, not bound": [[*run, "--no-bind", *train]], "two ranks, bound": [[*run, *train]]}
    seen = {name: [] for name in cases}
    for _ in range(o.rounds):
        for name, commands in cases.items():
            seen[name].append(backward_ms(*commands))
    alone = statistics.median(seen["two worlds of one"])
    for name, times in seen.items():
        print(f"{name}: {statistics.median(times):.1f} ms of backward ({statistics.median(times) / alone:.3f}), "
              f"{min(times):.1f} to {max(times):.1f}")


if __name__ == "__main__":
    main()
