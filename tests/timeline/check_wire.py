"""Seconds per step that the timeline's model of a network predicts beside those measured: 2 ranks over the shared memory of
one host, and on two hosts with 1 Gbit/s and 100 Mbit/s between them (tests/lab/hosts; needs root).

usage: check_wire.py [argument of check_wire...], with the release build of this tree, or that of ZEROSCHED_BIN
For an idle machine. Exits with 1 if a prediction is off by more than 15 %.
"""
import json
import os
import subprocess
import sys

os.environ.setdefault("ZEROSCHED_SOURCE_DIR", os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
os.environ.setdefault("ZEROSCHED_BIN", os.path.join(os.environ["ZEROSCHED_SOURCE_DIR"], "build", "release", "bin"))
os.environ.update(OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
sys.path.insert(0, os.path.join(os.environ["ZEROSCHED_SOURCE_DIR"], "tests", "lab"))
import lab  # noqa: E402

PROGRAM = os.path.join(lab.BIN, "check_wire")
MOST_OFF = 0.15
# At 100 Mbit/s the whole model would take several seconds a step, and a third of it shows the same.
SMALL = ["--layers", "6", "--steps", "3"]


def of_output(result):
    if result.returncode != 0:
        sys.exit(f"check_wire ended with {result.returncode}: {result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def on_one_host(arguments):
    return of_output(subprocess.run(["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2", PROGRAM, *arguments],
                                    capture_output=True, text=True, timeout=600))


def on_two_hosts(rate, arguments):
    hosts = lab.Hosts()
    hosts.up(rate)
    try:
        run = os.path.join(lab.SOURCE, "launch", "run")
        return of_output(hosts.run("h1", run, "--hosts", "h1,h2", "-n", "2", "--threads", "1", "--no-bind", PROGRAM, *arguments,
                                   timeout=600))
    finally:
        hosts.down()


def main():
    reason = lab.reason_to_skip(lab.Hosts.tools)
    seen = {"shared memory": on_one_host(sys.argv[1:])}
    if reason:
        print(f"SKIPPED: two hosts: {reason}")
    else:
        seen["1 Gbit/s"] = on_two_hosts("1gbit", sys.argv[1:])
        seen["100 Mbit/s"] = on_two_hosts("100mbit", SMALL + sys.argv[1:])
    for name, figures in seen.items():
        wires = ", ".join(f"{kind} {figures[kind]['start_s'] * 1e3:.2f} ms + bytes / {figures[kind]['bytes_per_s'] / 1e6:.0f} MB/s"
                          for kind in ("reduce_scatter", "all_gather"))
        print(f"{name}: measured {figures['measured_step_s']:.3f} s, predicted {figures['predicted_step_s']:.3f} s, "
              f"ratio {figures['ratio']:.2f} ({wires})")
    return int(any(abs(figures["ratio"] - 1) > MOST_OFF for figures in seen.values()))


sys.exit(main())
