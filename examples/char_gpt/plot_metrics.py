#!/usr/bin/env python3
"""Draws the learning curve of a char_gpt run.

usage: plot_metrics.py METRICS.jsonl OUT.png
"""
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def centred_mean(values, reach):
    """Mean of each value and up to `reach` neighbours on either side."""
    means = []
    for i in range(len(values)):
        window = values[max(0, i - reach):i + reach + 1]
        means.append(sum(window) / len(window))
    return means


def main(metrics_path, out_path):
    with open(metrics_path) as file:
        lines = [json.loads(line) for line in file]
    if not lines:
        sys.exit(f"{metrics_path} holds no metrics")
    steps = [line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    evaluations = [line for line in lines if "eval_loss_x" in line]
    eval_steps = [line["step"] for line in evaluations]
    at_x = [line["eval_loss_x"] for line in evaluations]
    at_y = [line["eval_loss_y"] for line in evaluations]

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes.plot(steps, losses, color="0.85", linewidth=0.8)
    mean_losses = centred_mean(losses, len(steps) // 100)
    axes.plot(steps, mean_losses, color="0.5", linewidth=1.2, label="training, at y")
    axes.plot(eval_steps, at_x, color="tab:blue", marker="o", markersize=3.5, label="held out, at x")
    # Dashed and on top, because the two often lie on one another.
    axes.plot(eval_steps, at_y, color="tab:orange", linestyle="--", label="held out, at y")
    if evaluations:
        axes.annotate(f"{at_x[-1]:.2f}", (eval_steps[-1], at_x[-1]), xytext=(0, -12),
                      textcoords="offset points", ha="right", color="tab:blue")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per byte)")
    axes.set_xlim(0, 1.02 * steps[-1])
    axes.grid(True, color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out_path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    main(sys.argv[1], sys.argv[2])
