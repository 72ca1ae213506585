#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the JSON files of bench/run.sh into the tables of docs/performance.md.

    python3 bench/tables.py build/release/bench-results/*.json [--charts FOLDER]

The chart needs matplotlib.
"""
import argparse
import json
import pathlib
from collections import defaultdict

COUNTERS = ("gemms", "excess", "applications", "sweeps", "gflops", "of_gemm", "speedup", "of_ideal",
            "of_uniform")
FACTORISATIONS = ("subspace", "deflated_gram/", "gram/", "exact/", "automatic/", "bdcsvd/",
                  "published/", "swift/", "gesvd", "syevd/")


def figures(paths):
    """name -> median milliseconds and counters; without repetitions the one run."""
    runs = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for run in json.load(file)["benchmarks"]:
                if run.get("aggregate_name", "median") != "median" or run.get("error_occurred"):
                    continue
                name = run.get("run_name", run["name"]).removesuffix("/manual_time")
                scale = {"ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3}[run["time_unit"]]
                values = {key: run[key] for key in COUNTERS if key in run}
                runs[name] = {"ms": run["real_time"] * scale, **values}
    return runs


def table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def of(runs, name, other):
    """The time of one benchmark over another's, where both ran."""
    if other not in runs or name == other:
        return "–"
    return f"{runs[name]['ms'] / runs[other]['ms']:.2f}"


def truncated_svd(runs):
    rows = []
    for name, run in sorted(runs.items()):
        algorithm, backend, spectrum, shape, *ratio = name.split("/")
        matrix = f"{spectrum}/{shape}"
        rows.append([
            f"{algorithm}, {backend}", spectrum, shape.replace("x", " × "),
            f"{ratio[0]} %" if ratio else "", f"{run['ms'] / 1000:.3g}", f"{run['gemms']:.1f}",
            of(runs, name, f"exact/{backend}/{matrix}"), of(runs, name, f"swift/lapack/{matrix}"),
            of(runs, name, f"bdcsvd/eigen/{matrix}"), of(runs, name, f"published/lapack/{matrix}"),
            f"{run['excess']:.0e}",
        ])
    table(["algorithm", "spectrum", "shape", "ratio", "s", "products", "of exact", "of swift",
           "of BDCSVD", "of published", "excess"], rows)


def model_layers(runs):
    """Milliseconds for all layers of a model, by projection, and the worst excess."""
    cells = defaultdict(dict)
    shapes = {}
    worst = {}
    for name, run in runs.items():
        algorithm, backend, matrices, shape, *ratio = name.split("/")
        model, projection = matrices.split(":")
        key = (model, f"{algorithm}, {backend}", f"{ratio[0]} %" if ratio else "")
        shapes[projection] = f"{projection}, {shape.replace('x', ' × ')}"
        cells[key][projection] = f"{run['ms']:.0f}"
        worst[key] = max(worst.get(key, 0), run["excess"])
    table(["model", "algorithm", "ratio"] + list(shapes.values()) + ["worst excess"],
          [[*key] + [row.get(projection, "–") for projection in shapes] + [f"{worst[key]:.0e}"]
           for key, row in sorted(cells.items())])


def gram(runs):
    rows = []
    for name, run in sorted(runs.items()):
        _, backend, element, features = name.split("/")
        rows.append([backend, element, features, f"{run['gflops']:.0f}", f"{run['of_gemm']:.2f}"])
    table(["backend", "activations", "features", "GFLOP/s", "of the product's rate"], rows)


def low_rank(runs):
    cells = defaultdict(dict)
    for name, run in runs.items():
        _, backend, batch, ratio = name.split("/")
        cells[backend, batch][ratio] = f"{run['speedup']:.2f} ({100 * run['of_ideal']:.0f} %)"
    ratios = sorted({ratio for row in cells.values() for ratio in row}, key=int)
    table(["backend", "batch"] + [f"{ratio} %" for ratio in ratios],
          [[*key] + [row.get(ratio, "–") for ratio in ratios]
           for key, row in sorted(cells.items(), key=lambda cell: (cell[0][0], int(cell[0][1])))])


def search(runs):
    rows = []
    for name, run in runs.items():
        method, way, backend, size, *_ = name.split("/")
        rows.append([method, way.replace("_", " "), backend, f"{size} × {size}",
                     f"{run['ms'] / 1000:.2f}", f"{run['of_uniform']:.2f}"])
    table(["method", "way", "backend", "matrices", "s", "of uniform"], rows)


def crossover(runs):
    """Milliseconds of each algorithm, by rank in percent of the shorter side."""
    cells = defaultdict(dict)
    for name, run in runs.items():
        _, algorithm, backend, shape, percent = name.split("/")
        cells[backend, shape.replace("x", " × "), algorithm][percent] = f"{run['ms']:.0f}"
    percents = sorted({percent for row in cells.values() for percent in row}, key=int)
    table(["backend", "shape", "algorithm"] + [f"{percent} %" for percent in percents],
          [[*key] + [row.get(percent, "–") for percent in percents]
           for key, row in sorted(cells.items())])


def time_chart(runs, folder):
    """Time against size of the square layer matrices, at 40 % where the rank matters."""
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "ressvd", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    lines = defaultdict(list)
    for name, run in runs.items():
        algorithm, backend, spectrum, shape, *ratio = name.split("/")
        m, n = shape.split("x")
        if spectrum == "layer" and m == n and algorithm != "subspace_1e-5" and ratio in ([], ["40"]):
            lines[f"{algorithm}, {backend}"].append((int(m), run["ms"] / 1000))
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for label, points in sorted(lines.items()):
        axis.plot(*zip(*sorted(points)), marker="o", markersize=4, label=label,
                  linestyle="-" if label.startswith(("subspace", "deflated")) else "--")
    sizes = sorted({size for points in lines.values() for size, _ in points})
    axis.set(xlabel="rows = columns", ylabel="seconds", xscale="log", yscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "time_against_size.svg", metadata={"Date": None}, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--charts", type=pathlib.Path)
    args = parser.parse_args()
    runs = figures(args.files)
    for title, write, prefixes in (
            ("Truncated SVD", truncated_svd, FACTORISATIONS),
            ("Layers of a model", model_layers, FACTORISATIONS),
            ("Gram of activations", gram, ("gram/", "gram_sum/")),
            ("Low-rank product", low_rank, ("low_rank/",)),
            ("Crossovers of automatic", crossover, ("crossover/",)),
            ("Search over the number of last layers", search, ("svd_llm/", "ressvd/"))):
        chosen = {name: run for name, run in runs.items()
                  if name.startswith(prefixes) and ("gflops" in run) == (write is gram)
                  and (":" in name.split("/")[2]) == (write is model_layers)}
        if chosen:
            print(f"## {title}\n")
            write(chosen)
            if write is truncated_svd and args.charts:
                time_chart(chosen, args.charts)


if __name__ == "__main__":
    main()
