"""Runs that are done, one JSON object per line and one file per task, and what is read off them."""
import json
import math
import os
import statistics


class Records:
    """The runs in FOLDER/TASK.jsonl, by their arguments."""

    def __init__(self, folder, task):
        self.path = os.path.join(folder, f"{task}.jsonl")
        self.runs = {}
        if not os.path.exists(self.path):
            return
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                try:
                    run = json.loads(line)
                except ValueError:
                    continue  # of a run that was recorded when the machine stopped; it is done again
                self.runs[tuple(run["arguments"])] = run

    def add(self, run):
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        needs_newline = False
        if os.path.exists(self.path):
            with open(self.path, "rb") as file:
                needs_newline = not (file.read()[-1:] or b"\n") == b"\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * needs_newline + json.dumps(run) + "\n")
        self.runs[tuple(run["arguments"])] = run


def value_at(run, metric, step):
    """The metric of a run after a step, infinite if it had diverged by then."""
    for evaluation in run["evaluations"]:
        value = evaluation["metrics"][metric]
        if evaluation["step"] == step and value is not None:
            return value
    return math.inf


def curve(run, metric):
    """(step, metric) at the points from the first step on, of those that all samples were evaluated at: fewer have another
    value, not only a less exact one."""
    samples = max(evaluation["samples"] for evaluation in run["evaluations"])
    return [(evaluation["step"], evaluation["metrics"][metric]) for evaluation in run["evaluations"]
            if evaluation["step"] > 0 and evaluation["samples"] == samples and evaluation["metrics"][metric] is not None]


class NotRun(Exception):
    """What a table or a figure needs has not been run yet."""


class Chosen:
    """The setting of an arm at a length that is best by the mean over all seeds, at the last step."""

    def __init__(self, task, runs, arm, steps):
        of_arm = [run for run in runs if run["arm"] == arm and run["steps"] == steps]
        by_setting = {}
        for run in of_arm:
            by_setting.setdefault(json.dumps(run["settings"]), []).append(run)
        self.tried = len(by_setting)
        whole = [group for group in by_setting.values() if len(group) == task.seeds]
        if not whole:
            raise NotRun(f"{task.name}: no setting of {arm} at {steps} steps has been run with {task.seeds} seeds")
        self.metric = task.metric
        self.runs = min(whole, key=lambda group: statistics.fmean(value_at(run, task.metric, steps) for run in group))
        self.settings = self.runs[0]["settings"]
        tried = {name: {json.loads(setting)[name] for setting in by_setting} for name in self.settings}
        # Of those settings that several values were tried of; no decay at all is an end of its own.
        self.at_end = [name for name, value in self.settings.items()
                       if len(tried[name]) > 1 and value in (min(tried[name]), max(tried[name])) and value != 0]

    def values(self, step, metric=None):
        """Of each seed; of the metric that the setting was chosen by, or of another."""
        return [value_at(run, metric or self.metric, step) for run in self.runs]

    def mean(self, step, metric=None):
        return statistics.fmean(self.values(step, metric))

    def deviation(self, step, metric=None):
        """Over seeds; 0 where there is one."""
        values = self.values(step, metric)
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0


def done(task, runs, arms):
    """Chosen at the longest length of each of these arms that has been run: arm -> Chosen."""
    found = {}
    for arm in arms:
        try:
            found[arm] = Chosen(task, runs, arm, task.steps)
        except NotRun:
            pass
    return found


class Comparison:
    """One Schedule-Free run per seed against the front of the runs with a schedule, at each length."""

    def __init__(self, task, runs, schedules, lengths):
        self.lengths = lengths
        self.schedule_free = Chosen(task, runs, "schedule-free", task.steps)
        self.scheduled = {schedule: {steps: Chosen(task, runs, schedule, steps) for steps in lengths}
                          for schedule in schedules}

    def front(self, steps):
        """The better schedule at a length."""
        return min((chosen[steps] for chosen in self.scheduled.values()), key=lambda chosen: chosen.mean(steps))

    def difference(self, steps):
        return self.schedule_free.mean(steps) - self.front(steps).mean(steps)

    def pooled_deviation(self, steps):
        return math.sqrt((self.schedule_free.deviation(steps)**2 + self.front(steps).deviation(steps)**2) / 2)

    def passes(self, steps):
        return self.difference(steps) <= self.pooled_deviation(steps)

    def verdict(self, steps):
        if self.difference(steps) <= 0:
            return "below"
        return "above, in noise" if self.passes(steps) else "above"
