#!/usr/bin/env python3
"""Draws the two figures of the comparison from its results.

usage: figures.py [--quick] FOLDER [TASK...]

FOLDER/battery.png: of each task the metric over steps of one Schedule-Free run, with a band over seeds, and the front
of tuned schedules; below it the difference to the front. FOLDER/averaging.png: Schedule-Free between its two extremes.
FOLDER/family.png: beside its relatives.
"""
import math
import os
import statistics
import sys

import plan
import table
from records import Comparison, NotRun, Records, curve, done

COLOURS = {"schedule-free": "tab:blue", "cosine": "tab:orange", "linear": "tab:green", "polyak": "tab:red",
           "primal": "tab:purple", "plus": "tab:pink", "plus-tuned": "tab:red", "refined": "tab:purple",
          "inner": "tab:cyan", "gpa": "tab:olive"}
LABELS = {"schedule-free": "Schedule-Free (beta1 0.9)", "cosine": "cosine schedules", "linear": "linear schedules",
          "polyak": "Polyak averaging (beta1 0)", "primal": "primal averaging (beta1 1)"}


def band(axes, chosen, arm, label=None):
    """The mean curve of an arm's chosen setting over seeds, and one standard deviation to either side, downwards as far as
    any seed is."""
    curves = [curve(run, chosen.metric) for run in chosen.runs]
    points = list(zip(*curves))  # of all seeds at one step; up to where the first diverged
    steps = [point[0][0] for point in points]
    means = [statistics.fmean(value for _, value in point) for point in points]
    deviations = [statistics.stdev(value for _, value in point) if len(point) > 1 else 0 for point in points]
    axes.plot(steps, means, color=COLOURS[arm], label=label or LABELS[arm], zorder=3)
    lowest = [min(value for _, value in point) for point in points]
    axes.fill_between(steps, [max(least, mean - deviation) for least, mean, deviation in zip(lowest, means, deviations)],
                      [mean + deviation for mean, deviation in zip(means, deviations)], color=COLOURS[arm], alpha=0.2,
                      linewidth=0)


def show_upper_part(axes, task, comparison):
    """From the best value to a little above what the shortest runs reach, where the arms can be told apart."""
    first, last = comparison.lengths[0], comparison.lengths[-1]
    arms = [comparison.schedule_free, comparison.front(first), comparison.front(last)]
    high = max(comparison.schedule_free.mean(first), comparison.front(first).mean(first))
    low = min(min(arms[0].values(last)), min(arms[2].values(last)))
    if task.log_metric:
        axes.set_yscale("log")
    if not math.isfinite(high):
        return  # every seed of a shortest run has diverged
    if task.log_metric:
        axes.set_ylim(low / 1.3, 4 * high)
    else:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))


def draw_task(upper, lower, task, comparison):
    band(upper, comparison.schedule_free, "schedule-free")
    for schedule, by_length in comparison.scheduled.items():
        for chosen in by_length.values():
            for run in chosen.runs:
                upper.plot(*zip(*curve(run, task.metric)), color=COLOURS[schedule], linewidth=0.5, alpha=0.4)
        steps = list(by_length)
        upper.errorbar(steps, [by_length[step].mean(step) for step in steps],
                       [by_length[step].deviation(step) for step in steps], color=COLOURS[schedule], marker="o",
                       markersize=3.5, linestyle="none", label=LABELS[schedule], zorder=4)
    upper.plot(comparison.lengths, [comparison.front(steps).mean(steps) for steps in comparison.lengths], color="0.3",
               linewidth=1, linestyle="--", label="their front", zorder=2)
    upper.set_title(task.title, fontsize=9)
    upper.set_ylabel(task.metric_title, fontsize=8)
    show_upper_part(upper, task, comparison)

    lower.axhline(0, color="0.3", linewidth=1, linestyle="--")
    # Relative where the axis above is logarithmic.
    scale = {steps: comparison.front(steps).mean(steps) if task.log_metric else 1 for steps in comparison.lengths}
    lower.errorbar(comparison.lengths, [comparison.difference(steps) / scale[steps] for steps in comparison.lengths],
                   [comparison.pooled_deviation(steps) / scale[steps] for steps in comparison.lengths],
                   color=COLOURS["schedule-free"], marker="o", markersize=3.5, linestyle="none", capsize=2)
    lower.set_xlabel("steps", fontsize=8)
    lower.set_ylabel("to the front" + ", relative" * task.log_metric, fontsize=8)
    for axes in (upper, lower):
        style(axes, comparison)
        axes.set_xlim(0.9 * min(comparison.lengths) / 4, 1.1 * task.steps)


def style(axes, comparison):
    axes.set_xscale("log")
    axes.set_xticks(comparison.lengths, [str(steps) for steps in comparison.lengths])
    axes.minorticks_off()
    axes.grid(True, color="0.93")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def draw_battery(pyplot, folder, drawn):
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = pyplot.subplots(2 * rows, columns, figsize=(4.2 * columns, 4.4 * rows), dpi=150, squeeze=False,
                                   layout="constrained", height_ratios=[3, 1] * rows)
    for index, (task, comparison) in enumerate(drawn):
        row, column = divmod(index, columns)
        draw_task(axes[2 * row][column], axes[2 * row + 1][column], task, comparison)
    for index in range(len(drawn), rows * columns):
        row, column = divmod(index, columns)
        axes[2 * row][column].set_axis_off()
        axes[2 * row + 1][column].set_axis_off()
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(os.path.join(folder, "battery.png"))
    pyplot.close(figure)


def draw_arms(pyplot, path, drawn):
    """One panel per task: the schedule that is better at the longest length, Schedule-Free, and other arms, labelled."""
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(4.2 * len(drawn), 3.4), dpi=150, squeeze=False,
                                   layout="constrained")
    for panel, (task, comparison, others) in zip(axes[0], drawn):
        front = comparison.front(task.steps)
        schedule = front.runs[0]["arm"]
        band(panel, front, schedule, f"{schedule} schedule")
        band(panel, comparison.schedule_free, "schedule-free")
        for arm, (chosen, label) in others.items():
            band(panel, chosen, arm, f"{label}, lr {chosen.settings['lr']:g}")
        panel.set_title(task.title, fontsize=9)
        panel.set_ylabel(task.metric_title, fontsize=8)
        panel.set_xlabel("steps", fontsize=8)
        show_upper_part(panel, task, comparison)
        style(panel, comparison)
        panel.legend(frameon=False, fontsize=6)
    figure.savefig(path)
    pyplot.close(figure)


def labelled(task, chosen):
    """arm -> (Chosen, what the legend calls it)."""
    names = {**LABELS, **{arm: relative.title for arm, relative in task.relatives.items()}}
    return {arm: (each, names[arm]) for arm, each in chosen.items()}


def draw(folder, tasks, is_quick):
    """Whatever of the figures is done; says what is not. Nothing without matplotlib."""
    try:
        import matplotlib  # pylint: disable=import-outside-toplevel
    except ImportError:
        print("battery: no figures, because this Python has no matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel
    battery, averaging, family = [], [], []
    for task in tasks:
        runs = list(Records(folder, task.name).runs.values())
        try:
            comparison = Comparison(task, runs, plan.SCHEDULES, plan.lengths(task, is_quick))
        except NotRun as error:
            print(f"battery: {error}; it is not in the figures", file=sys.stderr)
            continue
        battery.append((task, comparison))
        for panels, arms in ((averaging, plan.EXTREMES), (family, task.relatives)):
            others = labelled(task, done(task, runs, arms))
            if others:
                panels.append((task, comparison, others))
    if battery:
        draw_battery(pyplot, folder, battery)
    if averaging:
        draw_arms(pyplot, os.path.join(folder, "averaging.png"), averaging)
    if family:
        draw_arms(pyplot, os.path.join(folder, "family.png"), family)


if __name__ == "__main__":
    ARGUMENTS = table.parse(table.make_parser())
    draw(ARGUMENTS.folder, ARGUMENTS.tasks, ARGUMENTS.quick)
