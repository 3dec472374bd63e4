"""A trainer as far as a scheduler can tell: trains until USR1, then writes a checkpoint and exits with 75; started
again, it finds the checkpoint and finishes. One rank of several, without MPI.

usage: stand_in.py FOLDER    each rank leaves started.RANK, checkpoint.RANK and finished.RANK there
"""
import os
import signal
import sys
import time

FOLDER = sys.argv[1]
RANK = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMIX_RANK"))
SIZE = int(os.environ.get("OMPI_COMM_WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")))


def write(name):
    part = os.path.join(FOLDER, f"part.{RANK}")
    with open(part, "w", encoding="ascii") as file:
        file.write(f"{os.uname().nodename} {os.environ.get('SLURM_RESTART_COUNT', '0')}\n")
    os.rename(part, os.path.join(FOLDER, f"{name}.{RANK}"))


def wait_for_all(name):
    deadline = time.monotonic() + 20
    while len([entry for entry in os.listdir(FOLDER) if entry.startswith(f"{name}.")]) < SIZE:
        if time.monotonic() > deadline:
            sys.exit(f"rank {RANK}: {name} of the others is missing")
        time.sleep(0.05)


def checkpoint(*_):
    write("checkpoint")
    wait_for_all("checkpoint")
    sys.exit(75)


signal.signal(signal.SIGUSR1, checkpoint)
if os.path.exists(os.path.join(FOLDER, f"checkpoint.{RANK}")):
    write("finished")
    wait_for_all("finished")
    sys.exit(0)
write("started")
time.sleep(100)
sys.exit(70)
