"""Where and when a record was made: the commit, the machine and the date."""
import datetime
import functools
import os
import platform
import subprocess


@functools.lru_cache
def machine():
    """The processor's name and the number of cores."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"


@functools.lru_cache
def commit():
    """Of the tree that this file is in as it was at first, with + if it had changed; None without git."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=os.path.dirname(os.path.abspath(__file__)), capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None


def origin():
    """What a record says of where and when it was made."""
    return {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "commit": commit(), "machine": machine()}
