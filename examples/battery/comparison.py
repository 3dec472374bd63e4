"""Runs the comparison of Schedule-Free with tuned schedules, or what of it is not done yet.

Each arm is tuned in the same way. With seed 0: every learning rate, then every weight decay at the best, then every
beta2. An optimum at the end of a grid extends it. Then the best two settings with all seeds. Schedule-Free is tuned
for the longest length only, and each schedule for each length. Tasks that take least come first; table and figures are
made anew after each.
"""
import argparse
import asyncio
import collections
import contextlib
import fcntl
import itertools
import json
import math
import os
import subprocess
import sys
import time

import figures
import origin
import plan
import prepare_data
import table
from records import Records, value_at

START_S = 1.0  # of a process, beside its steps


class Progress:
    """A line that says how much is done, and from the pace of this session's runs what is left."""

    def __init__(self):
        self.began = time.monotonic()
        self.done = self.runs = self.all_runs = 0
        self.left = 0.0  # seconds on one core, as the plan has them
        self.said = -math.inf

    def expect(self, task, steps, runs):
        self.left += runs * (steps * task.step_s + START_S)
        self.all_runs += runs

    def finish(self, task, steps, was_there):
        seconds = steps * task.step_s + START_S
        self.left -= seconds
        self.runs += 1
        if not was_there:
            self.done += seconds
        self.say(task.name)

    def say(self, task):
        live = sys.stderr.isatty()
        if time.monotonic() - self.said < (0.2 if live else 20) and self.runs < self.all_runs:
            return
        self.said = time.monotonic()
        elapsed = self.said - self.began
        left = ""
        if self.done > 0:
            left = f", about {max(self.left, 0) * elapsed / self.done / 60:.1f} minutes left"
        text = f"battery: {self.runs} of {self.all_runs} runs, {elapsed / 60:.1f} minutes{left}, last of {task}"
        print(f"\r{text:<100}" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)


@contextlib.contextmanager
def alone_in(folder):
    """Keeps others from recording runs in the folder at the same time, which would do all of them twice."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"battery: another run is at work in {folder}; wait until it has ended, or give another --out")
        yield


class Runner:
    """Starts runs of the program that are not recorded, so many at a time, and records them."""

    def __init__(self, program, data, out, jobs):
        self.program, self.data, self.out = program, data, out
        self.slots = asyncio.Semaphore(jobs)
        self.records = {}
        self.running = {}
        self.progress = Progress()
        self.started = 0

    def recorded(self, task):
        if task.name not in self.records:
            self.records[task.name] = Records(self.out, task.name)
        return self.records[task.name]

    def say_what_is_of_other_commits(self, tasks):
        """Records are kept by command line alone: whether another program would do the same is for the user to say."""
        own = origin.commit()
        for task in tasks:
            records = self.recorded(task)
            others = collections.Counter(run["commit"] for run in records.runs.values() if run["commit"] != own)
            for other, count in others.items():
                print(f"battery: {count} runs of {task.name} are there of commit {other}, this is {own}; to have them "
                      f"done again, move {records.path} away", file=sys.stderr)

    async def run(self, task, arm, steps, seed, settings):
        """The record of the run, which may have been made before or be asked for twice at once."""
        arguments = plan.arguments(task, arm, steps, seed, settings)
        key = tuple(arguments)
        if key not in self.running:
            self.running[key] = asyncio.ensure_future(self.make(task, arm, steps, seed, settings, arguments))
        return await self.running[key]

    async def make(self, task, arm, steps, seed, settings, arguments):
        records = self.recorded(task)
        was_there = tuple(arguments) in records.runs
        if not was_there:
            async with self.slots:
                lines = await self.start(arguments)
            start, *evaluations, end = lines
            records.add({
                "task": task.name, "arm": arm, "steps": steps, "seed": seed, "settings": settings,
                **origin.origin(),
                **{name: start[name] for name in ("batch", "warmup", "world_size", "parameters", "state_bytes")},
                **{name: end[name] for name in ("diverged", "step_s", "cpu_s", "peak_rss_mib")},
                "evaluations": [{name: value for name, value in line.items() if name != "kind"}
                                for line in evaluations],
                "arguments": arguments})
        self.progress.finish(task, steps, was_there)
        return records.runs[tuple(arguments)]

    async def start(self, arguments):
        """The lines that the program prints, which must be whole."""
        self.started += 1
        process = await asyncio.create_subprocess_exec(
            self.program, "--data", self.data, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            out, error = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            raise
        lines = [json.loads(line) for line in out.decode().splitlines()]
        if process.returncode != 0 or not lines or lines[-1]["kind"] != "end":
            raise RuntimeError(f"{self.program} {' '.join(arguments)} ended with exit code {process.returncode}:\n"
                               f"{error.decode().strip()}")
        return lines


async def tune(runner, task, arm, steps, lr, defaults, other):
    """Runs an arm at one length over its grids, so that its best two settings are recorded with all seeds."""
    best = {"lr": None, **defaults}
    scores = {}  # setting -> metric of seed 0 after the last step

    async def score(settings):
        key = json.dumps(settings)
        if key not in scores:
            scores[key] = value_at(await runner.run(task, arm, steps, 0, settings), task.metric, steps)
        return scores[key]

    async def score_all(axis, values):
        return await asyncio.gather(*(score({**best, axis.name: value}) for value in values))

    for axis in (lr, *other):
        values, below, above = list(axis.values), list(axis.below), list(axis.above)
        results = await score_all(axis, values)
        while True:
            at = min(range(len(values)), key=results.__getitem__)
            if at == 0 and below:
                values.insert(0, below.pop(0))
            elif at == len(values) - 1 and above:
                values.append(above.pop(0))
            else:
                break
            runner.progress.expect(task, steps, 1)
            results = await score_all(axis, values)
        best[axis.name] = values[at]
    ranked = sorted(scores, key=scores.__getitem__)[:2]
    await asyncio.gather(*(runner.run(task, arm, steps, seed, json.loads(settings))
                           for settings, seed in itertools.product(ranked, range(1, task.seeds))))


def searches(task, is_quick):
    """Arm, length, grid of learning rates, other settings and their grids, of all that is to be tuned of a task."""
    yield "schedule-free", task.steps, task.lr["schedule-free"], task.defaults, task.other
    for schedule in plan.SCHEDULES:
        for steps in plan.lengths(task, is_quick):
            yield schedule, steps, task.lr["scheduled"], task.defaults, task.other
    for arm in plan.EXTREMES:
        if arm in task.lr:
            yield arm, task.steps, task.lr[arm], task.defaults, task.other
    for arm, relative in task.relatives.items():
        yield arm, task.steps, relative.lr, relative.defaults, relative.other


async def compare(runner, tasks, is_quick, report):
    """All that is not done; `report` is called with the names of those that are, after each."""
    for task in tasks:
        for _, steps, lr, _, other in searches(task, is_quick):
            settings = len(lr.values) + sum(len(axis.values) - 1 for axis in other)
            runner.progress.expect(task, steps, settings + min(2, settings) * (task.seeds - 1))
    done = []
    # One after the other, so that an interrupted comparison has whole panels.
    for task in sorted(tasks, key=lambda task: task.steps * task.step_s):
        await asyncio.gather(*(tune(runner, task, *search) for search in searches(task, is_quick)))
        done.append(task.name)
        report(done)


def main():
    parser = argparse.ArgumentParser(prog="run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(plan.TASKS), help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one seed, two short lengths, two learning rates")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each (default 2)")
    parser.add_argument("--out", help="folder for results (default: build/battery, with --quick build/battery_quick)")
    parser.add_argument("--data", default=prepare_data.default_folder(), help="folder of the data")
    parser.add_argument("--program", required=True, help="the program battery")
    arguments = parser.parse_args()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    out = arguments.out or os.path.join(root, "build", "battery_quick" if arguments.quick else "battery")
    names = arguments.task or list(plan.TASKS)

    missing = prepare_data.prepare(arguments.data, names)
    for name, message in missing.items():
        print(f"battery: no data for {name}: {message}", file=sys.stderr)
    if missing:
        sys.exit(3)
    tasks = [plan.quick(plan.TASKS[name]) if arguments.quick else plan.TASKS[name] for name in names]
    runner = Runner(arguments.program, arguments.data, out, arguments.jobs)

    def report(done):
        """Table and figures of these tasks and of what else is in the folder."""
        shown = [plan.quick(task) if arguments.quick else task for name, task in plan.TASKS.items()
                 if name in done or (name not in names and os.path.exists(Records(out, name).path))]
        table.write(out, shown, arguments.quick)
        figures.draw(out, shown, arguments.quick)

    try:
        with alone_in(out):
            runner.say_what_is_of_other_commits(tasks)
            asyncio.run(compare(runner, tasks, arguments.quick, report))
    except RuntimeError as error:
        sys.exit(f"battery: {error}")
    except KeyboardInterrupt:
        sys.exit("battery: interrupted; the next start goes on from here")
    with open(os.path.join(out, "table.md"), encoding="utf-8") as file:
        print(file.read())
    were_there = runner.progress.runs - runner.started
    print(f"battery: {runner.started} runs started, {were_there} were there; results are in {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
