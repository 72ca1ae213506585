#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compresses a model in every way of a grid and measures each result on several texts.

    examples/results.py PROGRAM MODEL OUT --texts FILE... [--calibration FILE] [--only REGEX]

PROGRAM is ressvd-llm. Texts and calibration are .txt, .u16, .u32 or .npy files, as ressvd-llm takes
them; without --calibration the model calibrates on itself. With --refine the pivoted result of every
row but the variants is refined, too. Every run leaves OUT/NAME.json, with the report of `compress` or
`refine` and the perplexities; runs whose file exists are not repeated. The tables go to standard
output. Needs Python 3.8, and matplotlib for --charts.
"""
import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys

import plot

RATIOS = ("0.2", "0.4", "0.6")
METHODS = {
    "svd": "--method svd",
    "fwsvd": "--method fwsvd --labels text --curvature-samples {samples}",
    "asvd": "--method asvd",
    "svd-llm": "--method svd-llm",
    "svd-llm+update": "--method svd-llm --update",
    "adasvd": "--method adasvd --allocation uniform",
    "ressvd": "--method ressvd",
    "tempered": "--method tempered --power 0.6",
    "kfac-svd": "--method kfac-svd",
}
ALLOCATIONS = {
    "uniform": "--last-layers all",
    "last-k": "--last-layers auto",
    "fisher": "--allocation fisher",
    "sensitivity": "--allocation sensitivity --probe-ranks 1",
}
# Methods of uniform ranks only, and of ranks of each matrix's own.
UNIFORM_METHODS = ("adasvd", "svd-llm+update")
OWN_RANKS_METHODS = ("svd-llm", "ressvd", "tempered", "kfac-svd")
# Numbers of last layers besides the best one, and the methods they are tried with.
LAST_LAYERS = {"0.2": (6, 8), "0.4": (8, 10), "0.6": (8, 10)}
FIXED_METHODS = ("svd-llm", "ressvd", "tempered")
FORMS = ("pair", "pivoted")
STAGES = (*FORMS, "refined")
# What is tried on top of tempered whitening with ranks by sensitivity.
VARIANTS = {
    "p=1": "--power 1 --probe-ranks 1",
    "p=auto": "--power auto --probe-ranks 1 --heldout-samples 16",
    "two probe ranks": "--power 0.6 --probe-ranks 2",
    "second round": "--power 0.6 --probe-ranks 1 --rounds 2 --heldout-samples 16",
    "update": "--power 0.6 --probe-ranks 1 --update --update-target 0.5",
    "retruncate": "--power 0.6 --probe-ranks 1 --retruncate",
    "retruncate, p=1": "--power 1 --probe-ranks 1 --retruncate",
    "two probe ranks, retruncate": "--power 0.6 --probe-ranks 2 --retruncate",
}


class Row:
    """One line of a table: a run in each form."""

    def __init__(self, ratio, method, allocation, arguments, name=None):
        self.ratio, self.method, self.allocation = ratio, method, allocation
        self.arguments = f"--ratio {ratio} {arguments}"
        self.name = name or f"{method} {allocation} {ratio}"

    def run_name(self, stage):
        return f"{self.name} {stage}"


def grid(samples):
    for ratio in RATIOS:
        for method, arguments in METHODS.items():
            arguments = arguments.format(samples=samples)
            for allocation, how in ALLOCATIONS.items():
                if method in UNIFORM_METHODS and allocation != "uniform":
                    continue
                if allocation in ("fisher", "sensitivity") and method not in OWN_RANKS_METHODS:
                    continue
                how = "" if "--allocation" in arguments else how
                yield Row(ratio, method, allocation, f"{arguments} {how}")
        for method in FIXED_METHODS:
            for k in LAST_LAYERS[ratio]:
                yield Row(ratio, method, f"last {k}", f"{METHODS[method]} --last-layers {k}")
        for variant, arguments in VARIANTS.items():
            yield Row(ratio, variant, "variant",
                      f"--method tempered --allocation sensitivity {arguments}",
                      f"sensitivity {variant} {ratio}")


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")


def perplexity(args, model, text):
    report = args.out / "perplexity.json"
    kind = "--text" if text.suffix == ".txt" else "--tokens"
    run([args.program, "perplexity", model, kind, text, "--seqlen", args.seqlen, "--overlap", 1,
         "--max-windows", args.windows, "--threads", args.threads, "--json", report])
    return json.loads(report.read_text())["perplexity"]


def file_of(args, name):
    return args.out / (re.sub(r"[^a-z0-9.=+-]+", "-", name) + ".json")


def samples_of(args):
    """The options by which every run draws the same samples."""
    calibration = ["--calibration", args.calibration] if args.calibration else []
    if args.first:
        calibration += ["--windows", "first"]
    return ["--samples", args.samples, "--seqlen", args.seqlen, "--threads", args.threads,
            *calibration]


def measure(args, row, stages):
    """{stage: report of the run, with its perplexities}"""
    files = {stage: file_of(args, row.run_name(stage)) for stage in stages}
    reports = {stage: json.loads(file.read_text()) for stage, file in files.items() if file.exists()}
    report = args.out / "report.json"
    model, refined = args.out / "model", args.out / "refined"

    def keep(stage, directory):
        reports[stage] = json.loads(report.read_text())
        reports[stage]["perplexities"] = [perplexity(args, directory, text) for text in args.texts]
        files[stage].write_text(json.dumps(reports[stage], indent=1))

    for form in FORMS:
        missing = [stage for stage in stages if stage not in reports
                   and (stage == form or (stage == "refined" and form == "pivoted"))]
        if args.finished or not missing:
            continue
        print(row.run_name(" ".join(missing)), file=sys.stderr, flush=True)
        for directory in (model, refined):
            shutil.rmtree(directory, ignore_errors=True)
        heldout = ["--heldout-samples", 0] if args.first and "--heldout" not in row.arguments else []
        run([args.program, "compress", args.model, model, "--json", report, "--dtype", "f32",
             "--form", form, *samples_of(args), *heldout, *row.arguments.split()])
        if form in missing:
            keep(form, model)
        if "refined" in missing:
            run([args.program, "refine", args.model, model, refined, "--json", report,
                 "--heldout-samples", 0 if args.first else 16, *samples_of(args)])
            keep("refined", refined)
    return reports


def final_layer_error(report):
    allocation = report["allocation"]
    for candidate in allocation.get("search", []):
        if candidate["last_layers"] == allocation.get("last_layers"):
            return f"{candidate['final_layer_error']:.3f}"
    return "–"


def print_tables(args, original, rows, runs):
    names = [text.name.rsplit(".", 1)[0] for text in args.texts]

    def cells(row, *keys):
        """The reports' values, pair then pivoted, and the perplexities of both."""
        reports = [runs.get(row.run_name(stage)) for stage in STAGES]
        first = next(r for r in reports if r)
        digits = lambda r: " / ".join(f"{v:.4g}" for v in r["perplexities"]) if r else "–"
        return [key(first) for key in keys] + [digits(r) for r in reports]

    def table(head, lines):
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        for line in lines:
            print("| " + " | ".join(line) + " |")

    print("Original: " + ", ".join(f"{n} {v:.4g}" for n, v in zip(names, original)) + ".\n")
    texts = " / ".join(names)
    table(["ratio", "method", "ranks", "k", "error", f"pair: {texts}", "pivoted", "refined"],
          [[f"{float(row.ratio):.0%}", row.method, row.allocation,
            *cells(row, lambda r: str(r["allocation"].get("last_layers", "–")), final_layer_error)]
           for row in rows if row.allocation != "variant"])
    print()
    table(["ratio", "tempered, by sensitivity, with", "predicted KL", "measured KL",
           f"pair: {texts}", "pivoted"],
          [[f"{float(row.ratio):.0%}", "p=0.6" if row.method == "tempered" else row.method,
            *cells(row, lambda r: f"{r['allocation']['predicted_loss']:.4f}",
                   lambda r: f"{r['allocation']['measured_loss']:.4f}")[:4]]
           for row in rows if row.allocation == "variant"
           or (row.method == "tempered" and row.allocation == "sensitivity")])


# Lines of the chart of perplexity against ratio: run, label, style.
CHART_LINES = [
    ("svd uniform", "SVD", "C7"),
    ("asvd uniform", "ASVD", "C5"),
    ("svd-llm uniform", "SVD-LLM", "C0"),
    ("ressvd last-k", "ResSVD, last k", "C1"),
    ("tempered sensitivity", "tempered, by sensitivity", "C2"),
    ("kfac-svd fisher", "KFAC-SVD, by curvature", "C3"),
]
CHART_STYLES = {"pair": "--", "pivoted": "-", "refined": ":"}


def perplexity_chart(plt, names, original, runs):
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.6), squeeze=False)
    for i, (axis, name) in enumerate(zip(axes[0], names)):
        for line, label, color in CHART_LINES:
            for stage, style in CHART_STYLES.items():
                points = [(float(r), runs[f"{line} {r} {stage}"]["perplexities"][i] / original[i] - 1)
                          for r in RATIOS if f"{line} {r} {stage}" in runs]
                if points:
                    axis.plot(*zip(*points), color + style, marker="o", markersize=4,
                              label=f"{label}, {stage}")
        axis.set(title=name, yscale="log", xlabel="compression ratio", xticks=[0.2, 0.4, 0.6])
    axes[0][0].set_ylabel("excess perplexity, relative")
    axes[0][-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def kept_chart(plt, report, title):
    figure, axis = plt.subplots(figsize=(6, 3))
    plot.draw_kept(figure, axis, report, title)
    return figure


def loss_chart(plt, runs):
    """Both losses of the uniformly compressed matrices, relative, in the mean over all of them."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, loss in zip(axes, ("activation_loss", "weight_loss")):
        for method in ("svd", "fwsvd", "asvd", "svd-llm", "ressvd", "tempered"):
            points = []
            for ratio in RATIOS:
                matrices = runs.get(f"{method} uniform {ratio} pair", {}).get("matrices", [])
                values = [m[loss]["relative"] for m in matrices if loss in m]
                if values:
                    points.append((1 - float(ratio), sum(values) / len(values)))
            if points:
                axis.plot(*zip(*points), marker="o", markersize=4, label=method)
        axis.set(title=loss.replace("_", " "), xlabel="rank / break-even rank", ylabel="relative",
                 xticks=[0.4, 0.6, 0.8], ylim=(0, None))
    axes[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def error_chart(plt, runs):
    """The final-layer error of every k that a search tried."""
    figure, axis = plt.subplots(figsize=(5, 3.4))
    for color, ratio in enumerate(RATIOS):
        for method, style in (("svd-llm", "--"), ("ressvd", "-")):
            search = runs.get(f"{method} last-k {ratio} pair", {}).get("allocation", {}).get("search")
            if search:
                tried = sorted((c["last_layers"], c["final_layer_error"]) for c in search)
                axis.plot(*zip(*tried), f"C{color}{style}", marker="o", markersize=3,
                          label=f"{method}, {float(ratio):.0%}")
    axis.set(xlabel="last layers compressed", ylabel="final-layer error", ylim=(0, None))
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def prediction_chart(plt, runs):
    """Measured against predicted divergence of every run that probed."""
    figure, axis = plt.subplots(figsize=(4, 3.6))
    values = []
    for color, ratio in enumerate(RATIOS):
        for marker, label in (("o", "one probe rank"), ("s", "two probe ranks")):
            points = [(r["allocation"]["predicted_loss"], r["allocation"]["measured_loss"])
                      for name, r in runs.items()
                      if f" {ratio} " in name and "predicted_loss" in r["allocation"]
                      and ("two probe ranks" in name) == (marker == "s")]
            if points:
                axis.plot(*zip(*points), f"C{color}{marker}", markersize=4,
                          label=f"{float(ratio):.0%}, {label}")
                values += [value for point in points for value in point]
    if values:
        ends = [min(values), max(values)]
        axis.plot(ends, ends, color="grey", linewidth=1)
    axis.set(xlabel="predicted KL divergence", ylabel="measured", xscale="log", yscale="log")
    axis.legend(fontsize="small")
    return figure


def draw_charts(args, original, runs):
    plt = plot.pyplot()
    args.charts.mkdir(parents=True, exist_ok=True)
    stem = f"{args.charts}/{args.model.resolve().name}"
    names = [text.name.rsplit(".", 1)[0] for text in args.texts]
    plot.save(perplexity_chart(plt, names, original, runs), f"{stem}-perplexity.svg")
    plot.save(loss_chart(plt, runs), f"{stem}-losses.svg")
    plot.save(error_chart(plt, runs), f"{stem}-last-layers.svg")
    plot.save(prediction_chart(plt, runs), f"{stem}-prediction.svg")
    chosen = "kfac-svd fisher 0.4 pivoted"
    if chosen in runs:
        plot.save(kept_chart(plt, runs[chosen], "Ranks by curvature at 40 %, % kept"),
             f"{stem}-ranks.svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--texts", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--calibration", type=pathlib.Path)
    parser.add_argument("--first", action="store_true", help="use the calibration's first windows")
    parser.add_argument("--refine", action="store_true", help="refine the pivoted results, too")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--windows", type=int, default=96, help="of each text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="runs whose name matches this")
    parser.add_argument("--charts", type=pathlib.Path, help="folder for SVG charts")
    parser.add_argument("--finished", action="store_true", help="only what OUT has already")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    original = [perplexity(args, args.model, text) for text in args.texts]
    runs = {}
    rows = []
    for row in grid(args.samples):
        stages = STAGES if args.refine and row.allocation != "variant" else FORMS
        stages = [stage for stage in stages if re.search(args.only, row.run_name(stage))]
        reports = measure(args, row, stages)
        runs.update({row.run_name(stage): found for stage, found in reports.items()})
        if reports:
            rows.append(row)
    print_tables(args, original, rows, runs)
    if args.charts:
        draw_charts(args, original, runs)


if __name__ == "__main__":
    main()
