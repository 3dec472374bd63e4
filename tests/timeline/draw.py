"""Draws a trace of bench_timeline. usage: draw.py TRACE.json PICTURE.png [--title TEXT]"""
import argparse
import json

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

COLOURS = {"forward": "#9ecae1", "backward": "#3182bd", "pack": "#756bb1", "reduce-scatter": "#e6550d", "update": "#31a354",
           "all-gather": "#fdae6b", "other": "#bdbdbd", "waiting": "#f7f7f7"}
# A lane is called after what it is there for.
LANES = (("host", None), ("model and step()", "backward"), ("packing", "pack"), ("NCCL", "reduce-scatter"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("picture")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    with open(arguments.trace) as file:
        spans = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
    spans.sort(key=lambda span: list(COLOURS).index(span["cat"]))
    lane_of = {0: 0}
    for row, (_, category) in enumerate(LANES):
        lane_of.update({span["tid"]: row for span in spans if span["tid"] != 0 and span["cat"] == category})
    figure, axes = pyplot.subplots(figsize=(11, 2.4))
    seen = set()
    for span in spans:
        if span["tid"] not in lane_of:
            continue
        category = span["cat"]
        if category in ("waiting", "other"):
            continue
        axes.barh(lane_of[span["tid"]], span["dur"] / 1e3, left=span["ts"] / 1e3, height=0.7, color=COLOURS[category],
                  linewidth=0, label=None if category in seen else category)
        seen.add(category)
    axes.set_yticks(range(len(LANES)), [name for name, _ in LANES])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.margins(x=0.005)
    axes.set_title(arguments.title, fontsize=9, loc="left")
    axes.legend(ncol=len(seen), fontsize=7, frameon=False, loc="upper right", bbox_to_anchor=(1, -0.2))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(arguments.picture, dpi=110, bbox_inches="tight")


main()
