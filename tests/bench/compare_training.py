"""One training step of char_gpt against the same model in Python (peer.py), with one thread per rank, alternating.

usage: compare_training.py [--ranks 2] [--rate 1gbit] [--model 19m|51m] [--rounds 3] [--peers ddp fsdp2 zero1 compute]
                           [--out FILE]
       compare_training.py --all --out FILE     every row that FILE has not; takes an hour and a half
       compare_training.py --table FILE         the table, in Markdown, of what --out has written
       compare_training.py --readme FILE        three rows of it, as README has them

Without --rate on this host; with one on two hosts that tests/lab makes of it (root only), each with half of the ranks,
over a network that moves so much each way. zerosched-forward is zerosched with overlap_forward. Each round runs every
contender once; a step's seconds are those from the end of the second to the end of the last, over their number. Memory is
measured in runs of its own: the most proportional resident memory (Pss, in which pages that ranks share count once) of all
ranks together, over the ranks. At 100 Mbit/s, where steps take long and hardly differ, there is one round of few steps, and
memory is measured in it. The bound is the larger of computation alone, and of
forward and the bytes of a step over the rate.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
NAMES = {"compute": "forward and backward alone, in Python", "zerosched": "**zerosched**",
         "zerosched-forward": "**zerosched**, `overlap_forward`", "zero1": "ZeroRedundancyOptimizer, fused AdamW (no Schedule-Free)",
         "ddp": "DistributedDataParallel, schedulefree", "fsdp2": "FSDP2, schedulefree"}
PEERS = ["zerosched-forward", "ddp", "zero1", "fsdp2", "compute"]
MODELS = {"19m": dict(dim=512, layers=6, heads=8, batch=2, seq=64, parameters=19210240),
          "51m": dict(dim=832, layers=6, heads=8, batch=1, seq=32, parameters=50359296)}
RATES = {"1gbit": 125e6, "100mbit": 12.5e6}  # bytes per second
RATES_SAID = {"1gbit": "1 Gbit/s", "100mbit": "100 Mbit/s"}
ROWS = [dict(model=model, ranks=ranks, rate=rate) for rate, ranks in
        ((None, 2), (None, 4), ("1gbit", 2), ("1gbit", 4), ("100mbit", 2), ("100mbit", 4)) for model in MODELS]
README = [dict(model="19m", ranks=ranks, rate=rate) for ranks, rate in ((2, None), (2, "1gbit"), (4, "1gbit"))]
STEPS, STEPS_FOR_MEMORY = {None: 12, "1gbit": 8, "100mbit": 4}, 4
FORWARD = 1 / 3  # of computation
MARK = "ZEROSCHED_BENCH"
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


class Machines:
    """Where ranks run: this host, or two that the lab makes of it."""

    def __init__(self, rate, bin_folder):
        self.hosts = 1 if rate is None else 2
        self.environment = dict(ENVIRONMENT)
        self.lab = None
        if rate is not None:
            os.environ.update(ZEROSCHED_SOURCE_DIR=ROOT, ZEROSCHED_BIN=os.path.abspath(bin_folder))
            sys.path.insert(0, os.path.join(ROOT, "tests", "lab"))
            import lab
            self.lab = lab.Hosts()
            self.lab.up(rate)
            self.environment |= {"GLOO_SOCKET_IFNAME": "eth0",
                                 "OMPI_MCA_plm_rsh_agent": self.lab.environment["OMPI_MCA_plm_rsh_agent"]}

    def on(self, host, command):
        return command if self.lab is None else self.lab.on(f"h{host + 1}", *command)

    def close(self):
        if self.lab is not None:
            self.lab.down()


def sizes_of(model, steps):
    return [word for size in ("dim", "layers", "heads", "batch", "seq")
            for word in (f"--{size}", str(MODELS[model][size]))] + ["--steps", str(steps)]


def trainer(bin_folder, model, steps):
    """A rank's command."""
    return [os.path.join(os.path.abspath(bin_folder), "char_gpt"), "--synthetic", "--threads", "1", "--sample", "0",
            "--progress", "off", "--json", *sizes_of(model, steps)]


def commands_of(name, row, steps, machines, bin_folder):
    """What to start, on each host that needs it; the first prints the result."""
    ranks = str(row["ranks"])
    if name.startswith("zerosched"):
        start = (["mpirun", "-n", ranks, "--oversubscribe", "--bind-to", "none"] if machines.lab is None else
                 [os.path.join(ROOT, "launch", "run"), "--hosts", "h1,h2", "-n", ranks, "--threads", "1", "--no-bind"])
        return [machines.on(0, [*start, *trainer(bin_folder, row["model"], steps),
                                *(["--overlap-forward"] if name == "zerosched-forward" else [])])]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(row["ranks"] // machines.hosts)]
    if machines.lab is not None:
        torchrun += ["--nnodes", "2", "--master-addr", "10.77.0.1", "--master-port", "29555"]
    peer = [os.path.join(HERE, "peer.py"), name, *sizes_of(row["model"], steps)]
    return [machines.on(host, [*torchrun, *(["--node-rank", str(host)] if machines.lab else []), *peer])
            for host in range(machines.hosts)]


def resident_mib(mark, stop, peaks):
    """Watches the ranks of a job."""
    while not stop.wait(0.1):
        total = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    variables = file.read()
                if mark.encode() not in variables or b"\0RANK=" not in variables and b"OMPI_COMM_WORLD_RANK=" not in variables:
                    continue
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
            except (OSError, StopIteration):
                continue  # it has ended
        peaks.append(total / 1024)


def run(name, row, steps, machines, bin_folder, watches):
    """Seconds per step and, if watched, the most MiB of all ranks."""
    mark = f"{MARK}={uuid.uuid4()}"
    environment = dict(machines.environment, **dict([mark.split("=")]))
    stop, peaks = threading.Event(), []
    watcher = threading.Thread(target=resident_mib, args=(mark, stop, peaks))
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                 for command in commands_of(name, row, steps, machines, bin_folder)]
    if watches:
        watcher.start()
    printed = [process.communicate(timeout=900) for process in processes]
    stop.set()
    if watches:
        watcher.join()
    if any(process.returncode for process in processes):
        sys.exit(f"{name} failed: {printed}")
    result = next(line for out, _ in printed for line in reversed(out.splitlines()) if line.startswith("{"))
    return json.loads(result)["mean_step_s"], max(peaks, default=None)


def bound_of(row, compute):
    """Of a step, in seconds; `compute`: of forward and backward alone."""
    if row["rate"] is None:
        return compute
    # Half of the gradients leave each of two hosts, and half of the parameters.
    bytes_each_way = 4 * MODELS[row["model"]]["parameters"]
    return max(compute, FORWARD * compute + bytes_each_way / RATES[row["rate"]])


def measure(row, o):
    machines = Machines(row["rate"], o.bin)
    names = ["zerosched", *o.peers]
    steps, is_slow = o.steps or STEPS[row["rate"]], row["rate"] == "100mbit"
    rounds = 1 if is_slow else o.rounds
    seconds, memory = {name: [] for name in names}, {}
    try:
        for name in [] if is_slow else names:
            memory[name] = run(name, row, STEPS_FOR_MEMORY, machines, o.bin, True)[1]
        for number in range(rounds):
            for name in names:
                took, peak = run(name, row, steps, machines, o.bin, is_slow)
                seconds[name].append(took)
                memory.setdefault(name, peak)
                print(f"{row} round {number + 1} of {rounds}: {name} {took:.3f} s", file=sys.stderr, flush=True)
    finally:
        machines.close()
    result = dict(row, date=datetime.date.today().isoformat(), commit=commit(), machine=machine(), rounds=rounds,
                  seconds=seconds, mib_per_rank={name: round(memory[name] / row["ranks"]) for name in names})
    if "compute" in seconds:
        result["bound"] = bound_of(row, statistics.median(seconds["compute"]))
    return result


def commit():
    return subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}"


def place_of(row):
    hosts = "one host" if row["rate"] is None else f"two hosts, {RATES_SAID[row['rate']]}"
    return f"{hosts}, {row['ranks']} ranks, {MODELS[row['model']]['parameters'] / 1e6:.1f}M"


def cell(result, name):
    """Seconds, how many of zerosched's they are, and MiB per rank."""
    if name not in result["seconds"]:
        return ""
    median = statistics.median(result["seconds"][name])
    ratio = median / statistics.median(result["seconds"]["zerosched"])
    return f"{median:.3f} ({ratio:.2f}), {result['mib_per_rank'][name]}"


def readme_table(results):
    """In Markdown; a column for each of the rows that README shows."""
    shown = [next(result for result in results if row.items() <= result.items()) for row in README]
    lines = ["| | " + " | ".join(place_of(result) for result in shown) + " |", "|---" * (1 + len(shown)) + "|"]
    lines += [f"| {said} | " + " | ".join(cell(result, name) for result in shown) + " |" for name, said in NAMES.items()]
    return "\n".join(lines)


def table(results):
    """In Markdown; all, with when, at which commit and where each was measured."""
    lines = ["| | bound | " + " | ".join(NAMES.values()) + " |", "|---" * (2 + len(NAMES)) + "|"]
    lines += [f"| {place_of(result)} | {result['bound']:.3f} | " + " | ".join(cell(result, name) for name in NAMES) + " |"
              for result in results]
    origins = sorted({(result["date"], result["commit"], result["machine"]) for result in results})
    return "\n".join(lines + ["", *(f"Measured on {date} at {commit}, {where}." for date, commit, where in origins)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build/release/bin"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="12; 8 at 1 Gbit/s and 4 at 100 Mbit/s")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rate", choices=RATES)
    parser.add_argument("--model", choices=MODELS, default="19m")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--out", help="append a JSON line for each row")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--table", metavar="FILE")
    parser.add_argument("--readme", metavar="FILE")
    o = parser.parse_args()
    if o.table or o.readme:
        with open(o.table or o.readme) as file:
            return print((readme_table if o.readme else table)([json.loads(line) for line in file]))
    if o.rate and o.ranks % 2:
        parser.error("--ranks must be even: each of two hosts has half of them")
    if o.steps is not None and o.steps < 3:
        parser.error("--steps must be at least 3: the first two do not count")
    results = []
    if o.all and o.out and os.path.exists(o.out):  # of a run that was cut off
        with open(o.out) as file:
            results = [json.loads(line) for line in file]
    rows = [row for row in ROWS if not any(row.items() <= result.items() for result in results)]
    for row in rows if o.all else [dict(model=o.model, ranks=o.ranks, rate=o.rate)]:
        results.append(measure(row, o))
        if o.out:
            with open(o.out, "a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
