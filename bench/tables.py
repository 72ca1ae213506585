#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the JSON files of bench/run.sh into the tables of docs/performance.md.

    python3 bench/tables.py build/release/bench-results/*.json
"""
import json
import sys
from collections import defaultdict

COUNTERS = ("gemms", "excess", "applications", "sweeps", "gflops", "of_gemm", "speedup", "of_ideal")


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
    for name, run in runs.items():
        algorithm, backend, spectrum, shape, *ratio = name.split("/")
        layer = f"layer/{shape}"
        rows.append([
            f"{algorithm}, {backend}", spectrum, shape.replace("x", " × "),
            f"{ratio[0]} %" if ratio else "", f"{run['ms'] / 1000:.2f}", f"{run['gemms']:.1f}",
            of(runs, name, f"exact/{backend}/{layer}"), of(runs, name, f"gram/{backend}/{layer}"),
            of(runs, name, f"published/lapack/{layer}"), f"{run['excess']:.0e}",
        ])
    table(["algorithm", "spectrum", "shape", "ratio", "s", "products", "of exact", "of gram",
           "of published", "excess"], rows)


def gram(runs):
    rows = []
    for name, run in runs.items():
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
          [[*key] + [row.get(ratio, "–") for ratio in ratios] for key, row in cells.items()])


def main():
    runs = figures(sys.argv[1:])
    for title, write, prefixes in (
            ("Truncated SVD", truncated_svd, ("subspace", "gram/", "exact/", "published/", "gesvd",
                                              "syevd/")),
            ("Gram of activations", gram, ("gram/", "gram_sum/")),
            ("Low-rank product", low_rank, ("low_rank/",))):
        chosen = {name: run for name, run in runs.items()
                  if name.startswith(prefixes) and ("gflops" in run) == (write is gram)}
        if chosen:
            print(f"## {title}\n")
            write(chosen)


if __name__ == "__main__":
    main()
