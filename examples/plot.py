#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the JSON reports of ressvd-llm.

    examples/plot.py search REPORT... -o FILE.svg    final-layer error against the last layers' number
    examples/plot.py ratio REPORT... -o FILE.svg     held-out perplexity against the ratio
    examples/plot.py ranks REPORT... -o FILE.svg     what each matrix keeps of its parameters
    examples/plot.py errors REPORT... -o FILE.svg    error of the hidden states after each layer

The first three read what `compress --json` writes, the last one what `compare --json` writes. The
name of FILE decides the format. Needs Python 3.8 and matplotlib.
"""
import argparse
import json
import pathlib
import re
import sys


class unusable(Exception):
    """A report that does not hold what is to be drawn."""


def method_of(report):
    """The method, and how its factors were fitted to what the compressed layers produce."""
    options = report["options"]
    fits = [fit for fit in ("retruncate", "update") if options.get(fit)]
    return ", ".join([options["method"], *fits])


def label_of(report):
    return f"{method_of(report)}, {report['options']['allocation']}"


def draw_search(figure, reports):
    axis = figure.subplots()
    for report in reports:
        trials = sorted((t["last_layers"], t["final_layer_error"])
                        for t in report["allocation"].get("search", []))
        if trials:
            axis.plot(*zip(*trials), marker="o", markersize=4,
                      label=f"{method_of(report)}, ratio {report['requested_ratio']:.2f}")
    if not axis.lines:
        raise unusable("no report has a search over the number of last layers")
    axis.set(title="Final-layer error against the number of last layers compressed",
             xlabel="last layers compressed", ylabel="final-layer error", ylim=(0, None))
    axis.legend()


def draw_ratio(figure, reports):
    axis = figure.subplots()
    lines = {}
    for report in reports:
        if report["heldout"] is None:
            continue
        ratio, heldout = report["requested_ratio"], report["heldout"]
        lines.setdefault(label_of(report), set()).add((ratio, heldout["compressed_perplexity"]))
        lines.setdefault("original", set()).add((ratio, heldout["original_perplexity"]))
    if not lines:
        raise unusable("no report has a held-out perplexity")
    lines["original"] = lines.pop("original")  # last in the legend
    for label, points in lines.items():
        last = "last-layers" in label
        axis.plot(*zip(*sorted(points)), marker="o", markersize=4, label=label,
                  linestyle="--" if last else ":" if label == "original" else "-")
    axis.set(title="Held-out perplexity against compression ratio", xlabel="compression ratio",
             ylabel="perplexity", yscale="log")
    for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatted("{x:g}")
    axis.legend()


def kept_shares(report):
    """{kind of matrix: {layer: share of its parameters that is kept}}"""
    shares = {}
    pivoted = report["options"].get("form") == "pivoted"
    for matrix in report["matrices"]:
        layer = int(re.search(r"layers\.(\d+)\.", matrix["name"]).group(1))
        m, n, r = matrix["rows"], matrix["cols"], matrix["rank"]
        kind = matrix["name"].rsplit(".", 1)[1]
        shares.setdefault(kind, {})[layer] = (
            1 if r is None else r * (m + n - r * pivoted) / (m * n))
    return shares


def draw_kept(figure, axis, report, title):
    """A cell for each kind of matrix and layer."""
    shares = kept_shares(report)
    if not shares:
        raise unusable("a report has no matrices")
    layers = sorted(next(iter(shares.values())))
    picture = axis.imshow([[kept[layer] for layer in layers] for kept in shares.values()],
                          vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for y, kept in enumerate(shares.values()):
        for x, layer in enumerate(layers):
            axis.text(x, y, f"{100 * kept[layer]:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if kept[layer] < 0.6 else "black")
    axis.set(title=title, xlabel="layer", xticks=range(len(layers)), xticklabels=layers,
             yticks=range(len(shares)), yticklabels=shares)
    figure.colorbar(picture, ax=axis, label="share of parameters kept")


def draw_ranks(figure, reports):
    figure.set_size_inches(6.4, 3.2 * len(reports))
    axes = figure.subplots(len(reports), squeeze=False)
    for axis, report in zip(axes[:, 0], reports):
        draw_kept(figure, axis, report,
                  f"{label_of(report)}, ratio {report['requested_ratio']:.2f}: % kept")


def draw_errors(figure, reports):
    axis = figure.subplots()
    for report in reports:
        for model in report["models"]:
            if model["model"] != report["original"]:
                errors = model["layer_errors"]
                axis.plot(range(len(errors)), errors, marker="o", markersize=4,
                          label=pathlib.Path(model["model"]).name)
    axis.set(title="Relative error of the hidden states", xlabel="after layer", ylabel="error",
             ylim=(0, None))
    axis.legend()


# What to draw: the function, the command whose reports it reads, a key that only those have.
CHARTS = {
    "search": (draw_search, "compress", "matrices"),
    "ratio": (draw_ratio, "compress", "matrices"),
    "ranks": (draw_ranks, "compress", "matrices"),
    "errors": (draw_errors, "compare", "models"),
}


def read(file, command, key):
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(f"{file}: {error}") from error
    if not isinstance(report, dict) or key not in report:
        raise unusable(f"{file}: is no report of 'ressvd-llm {command} --json'")
    return report


def pyplot():
    """matplotlib, set up so that the same reports give the same file."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot.py needs matplotlib: python3 -m pip install matplotlib, or the package "
                 "python3-matplotlib of the system")
    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "ressvd", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt
    return plt


def save(figure, path):
    metadata = {"Date": None} if pathlib.Path(path).suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("chart", choices=CHARTS)
    parser.add_argument("reports", metavar="REPORT", type=pathlib.Path, nargs="+")
    parser.add_argument("-o", "--output", metavar="FILE", type=pathlib.Path, required=True)
    args = parser.parse_args()
    draw, command, key = CHARTS[args.chart]
    try:
        reports = [read(file, command, key) for file in args.reports]
        figure = pyplot().figure(constrained_layout=True)
        draw(figure, reports)
        save(figure, args.output)
    except (unusable, OSError) as error:
        sys.exit(f"plot.py: {error}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        sys.exit(f"plot.py: a report is not as 'ressvd-llm {command} --json' writes it: {error!r}")


if __name__ == "__main__":
    main()
