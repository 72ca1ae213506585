#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the chart of docs/performance.md from bench/results/truncated_svd.csv. Needs matplotlib.

    python3 bench/plot_results.py [--results FOLDER] [--out FILE.svg]

Square matrices with a layer's spectrum, 40 % of the parameters removed: the time of each algorithm
as a multiple of one matrix product of the same size on the same backend. Where a file has several
rows of one case, the row with the most runs counts.
"""
import argparse
import csv
import pathlib

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "ressvd", "svg.fonttype": "none", "font.size": 9})
from matplotlib import pyplot as plt  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
OURS = {"deflated_gram": "#0b6e4f", "gram": "#3a7ca5", "subspace": "#c17c00"}
BASELINES = {"bdcsvd": "Eigen BDCSVD", "exact": "exact SVD", "published": "published code",
             "swift": "Swift-SVD"}


def times(path):
    """backend -> algorithm -> size -> products."""
    chosen = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["spectrum"] == "layer" and row["rows"] == row["cols"]
                    and row["ratio_percent"] in ("", "40")
                    and row["algorithm"] in OURS | BASELINES):
                case = row["backend"], row["algorithm"], int(row["rows"])
                if case not in chosen or int(chosen[case]["runs"]) < int(row["runs"]):
                    chosen[case] = row
    result = {}
    for (backend, algorithm, size), row in sorted(chosen.items()):
        result.setdefault(backend, {}).setdefault(algorithm, {})[size] = float(row["products"])
    return result


def apart(labels, distance):
    """Heights of the labels, moved up where two would overlap."""
    heights = {}
    last = float("-inf")
    for name, height in sorted(labels.items(), key=lambda label: label[1]):
        last = heights[name] = max(height, last + distance)
    return heights


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--results", type=pathlib.Path, default=HERE / "results")
    parser.add_argument("--out", type=pathlib.Path,
                        default=HERE.parent / "docs/charts/truncated_svd_time.svg")
    args = parser.parse_args()
    backends = times(args.results / "truncated_svd.csv")
    figure, axes = plt.subplots(1, len(backends), figsize=(8, 3.6), sharey=True, squeeze=False)
    for axis, (backend, algorithms) in zip(axes[0], backends.items()):
        ends = {}
        for algorithm, line in algorithms.items():
            ours = algorithm in OURS
            axis.plot([str(size) for size in line], list(line.values()), marker="o", markersize=4,
                      color=OURS.get(algorithm, "#999999"), linewidth=2 if ours else 1.2,
                      linestyle="-" if ours else "--")
            ends[algorithm] = list(line.values())[-1]
        for algorithm, height in apart(ends, 1.4).items():
            axis.annotate(BASELINES.get(algorithm, algorithm), (len(line) - 1, height), (6, 0),
                          textcoords="offset points", va="center", annotation_clip=False,
                          color=OURS.get(algorithm, "#777777"))
        axis.set_title({"eigen": "Eigen backend", "lapack": "LAPACK backend (OpenBLAS)"}
                       .get(backend, backend), fontsize=10)
        axis.set_xlabel("rows = columns")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e5e5")
    axes[0][0].set_ylim(bottom=0)
    axes[0][0].set_ylabel("time, in matrix products")
    figure.tight_layout(w_pad=6)
    figure.savefig(args.out, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()
