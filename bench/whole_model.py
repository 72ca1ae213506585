#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seconds by stage and peak memory of `ressvd-llm compress`, as CSV.

    python3 bench/whole_model.py PROGRAM MODEL... [--calibration FILE] [--threads N] [--repeat N]

Without a calibration file the model writes its samples. The fastest of --repeat runs counts.
"""
import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile

RUNS = {
    "svd-llm, uniform": "--method svd-llm --last-layers all",
    "ressvd, uniform": "--method ressvd --last-layers all",
    "ressvd, best k": "--method ressvd --last-layers auto",
    "tempered, by sensitivity": "--method tempered --power 0.6 --allocation sensitivity",
    "the same, new truncation": "--method tempered --power 0.6 --allocation sensitivity --retruncate",
}
STAGES = ("sampling", "factoring", "choosing ranks", "writing", "evaluation")


def compress(args, model, options):
    calibration = ["--calibration", args.calibration] if args.calibration else []
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        subprocess.run([args.program, "compress", model, f"{folder}/out", "--ratio", "0.4",
                        "--samples", "128", "--seqlen", "256", "--threads", str(args.threads),
                        "--json", report, *calibration, *options.split()],
                       check=True, capture_output=True)
        return json.loads(report.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--calibration")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["model", "run", *(f"{stage.replace(' ', '_')}_seconds" for stage in STAGES),
                     "all_seconds", "peak_mib", "estimate_mib"])
    for model in args.models:
        for name, options in RUNS.items():
            reports = [compress(args, model, options) for _ in range(args.repeat)]
            best = min(reports, key=lambda r: sum(r["seconds"].values()))
            seconds = best["seconds"]
            memory = [f"{best['memory'][k] / 2**20:.0f}" for k in ("peak_bytes", "estimate_bytes")]
            cells = [f"{seconds.get(s, 0):.1f}" for s in STAGES]
            writer.writerow([model.resolve().name, name, *cells, f"{sum(seconds.values()):.1f}",
                             *memory])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
