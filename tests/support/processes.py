"""The processes of a job that runs on this machine: all have a mark of the test in their environment."""
import os
import signal
import time


def environment_of(pid):
    """What a process was started with; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            variables = environ.read().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(variable.split("=", 1) for variable in variables if "=" in variable)


def marked_processes(mark):
    """Those that live, zombies apart."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if environment_of(pid).get("ZEROSCHED_TEST_JOB") != mark:
            continue
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
                state = stat.read().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue  # it ended while we looked
        if state != "Z":
            found.append(int(pid))
    return found


def left_after(mark, seconds):
    """Those that are left once so many seconds are over; returns at once when there are none."""
    deadline = time.monotonic() + seconds
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def name_of(pid):
    """The program that a process runs, cut to 15 characters; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
            return comm.read().strip()
    except OSError:
        return ""


def kill(pids, number=signal.SIGKILL):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
