#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the JSON files of bench/run.sh into the CSV files of bench/results.

    python3 bench/to_csv.py build/release/bench-results/*.json --out FOLDER

`process` is the name of the JSON file that a row comes from: times compare best within one process.
Ratios to a baseline are filled in where the baseline ran in the same process.
"""
import argparse
import csv
import json
import pathlib

COUNTERS = ("gemms", "excess", "gflops", "of_gemm", "speedup", "of_ideal", "of_uniform")
FACTORISATIONS = ("subspace", "deflated_gram/", "gram/", "exact/", "automatic/", "bdcsvd/",
                  "published/", "swift/", "gesvd", "syevd/")


def figures(path):
    """name -> median milliseconds, number of runs and counters; without repetitions the one run."""
    runs = {}
    for run in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]:
        if run.get("aggregate_name", "median") != "median" or run.get("error_occurred"):
            continue
        name = run.get("run_name", run["name"]).removesuffix("/manual_time")
        scale = {"ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3}[run["time_unit"]]
        runs[name] = {"ms": run["real_time"] * scale, "runs": run.get("repetitions", 1),
                      **{key: run[key] for key in COUNTERS if key in run}}
    return runs


def sides(shape):
    rows, cols = shape.split("x")
    return {"rows": rows, "cols": cols}


def over(runs, name, baseline):
    """The time of one benchmark over another's, where both ran."""
    if baseline not in runs or name == baseline:
        return ""
    return f"{runs[name]['ms'] / runs[baseline]['ms']:.2f}"


def truncated_svd(process, runs):
    for name, run in sorted(runs.items()):
        algorithm, backend, spectrum, shape, *ratio = name.split("/")
        matrix = f"{spectrum}/{shape}"
        yield {"process": process, "runs": run["runs"], "algorithm": algorithm, "backend": backend,
               "spectrum": spectrum, **sides(shape), "ratio_percent": "".join(ratio),
               "seconds": f"{run['ms'] / 1000:.3g}", "products": f"{run['gemms']:.1f}",
               "of_exact": over(runs, name, f"exact/{backend}/{matrix}"),
               "of_swift": over(runs, name, f"swift/lapack/{matrix}"),
               "of_bdcsvd": over(runs, name, f"bdcsvd/eigen/{matrix}"),
               "of_published": over(runs, name, f"published/lapack/{matrix}"),
               "excess": f"{run['excess']:.0e}"}


def model_layers(process, runs):
    """All layers of a projection together; the excess is the worst of any layer."""
    for name, run in sorted(runs.items()):
        algorithm, backend, matrices, shape, *ratio = name.split("/")
        model, projection = matrices.split(":")
        yield {"model": model, "algorithm": algorithm, "backend": backend,
               "ratio_percent": "".join(ratio), "projection": projection, **sides(shape),
               "milliseconds": f"{run['ms']:.0f}", "worst_excess": f"{run['excess']:.0e}"}


def gram(process, runs):
    for name, run in sorted(runs.items()):
        _, backend, element, features = name.split("/")
        yield {"backend": backend, "activations": element, "features": features,
               "gflops": f"{run['gflops']:.0f}", "of_product_rate": f"{run['of_gemm']:.2f}"}


def low_rank(process, runs):
    for name, run in runs.items():
        _, backend, batch, ratio = name.split("/")
        yield {"backend": backend, "batch": batch, "ratio_percent": ratio,
               "speedup": f"{run['speedup']:.2f}", "percent_of_ideal": f"{100 * run['of_ideal']:.0f}"}


def search(process, runs):
    for name, run in runs.items():
        method, way, backend, size, *_ = name.split("/")
        yield {"method": method, "way": way.replace("_", " "), "backend": backend, "rows": size,
               "cols": size, "seconds": f"{run['ms'] / 1000:.2f}",
               "of_uniform": f"{run['of_uniform']:.2f}"}


def crossover(process, runs):
    for name, run in sorted(runs.items()):
        _, algorithm, backend, shape, percent = name.split("/")
        yield {"backend": backend, **sides(shape), "algorithm": algorithm, "rank_percent": percent,
               "milliseconds": f"{run['ms']:.0f}"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for rows_of, prefixes in ((truncated_svd, FACTORISATIONS), (model_layers, FACTORISATIONS),
                              (gram, ("gram/", "gram_sum/")), (low_rank, ("low_rank/",)),
                              (crossover, ("crossover/",)), (search, ("svd_llm/", "ressvd/"))):
        rows = []
        for path in args.files:
            runs = {name: run for name, run in figures(path).items()
                    if name.startswith(prefixes) and ("gflops" in run) == (rows_of is gram)
                    and (":" in name.split("/")[2]) == (rows_of is model_layers)}
            rows += rows_of(path.stem, runs)
        if rows:
            with open(args.out / f"{rows_of.__name__}.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
