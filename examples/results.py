#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compresses a model in every way of a grid and measures each result on several texts.

    examples/results.py PROGRAM MODEL OUT --texts FILE... [--calibration FILE] [--only REGEX]

PROGRAM is ressvd-llm. Texts and calibration are .txt, .u16, .u32 or .npy files, as ressvd-llm takes
them; without --calibration the model calibrates on itself. Every run leaves OUT/NAME.json, with the
report of `compress` and the perplexities; runs whose file exists are not repeated. The tables go to
standard output. Needs Python 3.8 and nothing else.
"""
import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys

RATIOS = ("0.2", "0.4", "0.6")
METHODS = {
    "svd": "--method svd",
    "asvd": "--method asvd",
    "svd-llm": "--method svd-llm",
    "svd-llm+update": "--method svd-llm --update",
    "adasvd": "--method adasvd --allocation uniform",
    "ressvd": "--method ressvd",
    "tempered": "--method tempered --power 0.6",
}
ALLOCATIONS = {
    "uniform": "--last-layers all",
    "last-k": "--last-layers auto",
    "sensitivity": "--allocation sensitivity --probe-ranks 1",
}
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


def grid():
    """(name, ratio, method, allocation, arguments) of every run."""
    for ratio in RATIOS:
        for method, arguments in METHODS.items():
            for allocation, how in ALLOCATIONS.items():
                if method in ("adasvd", "svd-llm+update") and allocation != "uniform":
                    continue
                how = "" if "--allocation" in arguments else how
                yield (f"{method} {allocation} {ratio}", ratio, method, allocation,
                       f"--ratio {ratio} {arguments} {how}")
        for variant, arguments in VARIANTS.items():
            yield (f"sensitivity {variant} {ratio}", ratio, variant, "variant",
                   f"--ratio {ratio} --method tempered --allocation sensitivity {arguments}")


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


def measure(args, name, arguments):
    target = args.out / (re.sub(r"[^a-z0-9.=+-]+", "-", name) + ".json")
    if target.exists():
        return json.loads(target.read_text())
    print(name, file=sys.stderr, flush=True)
    model = args.out / "model"
    report = args.out / "report.json"
    shutil.rmtree(model, ignore_errors=True)
    calibration = ["--calibration", args.calibration] if args.calibration else []
    if args.first:
        calibration += ["--windows", "first"]
    heldout = [] if "--heldout" in arguments or not args.first else ["--heldout-samples", 0]
    run([args.program, "compress", args.model, model, "--json", report, "--samples", args.samples,
         "--seqlen", args.seqlen, "--dtype", "f32", "--threads", args.threads, *calibration,
         *heldout, *arguments.split()])
    result = json.loads(report.read_text())
    result["perplexities"] = [perplexity(args, model, text) for text in args.texts]
    shutil.rmtree(model)
    target.write_text(json.dumps(result, indent=1))
    return result


def final_layer_error(report):
    allocation = report["allocation"]
    for candidate in allocation.get("search", []):
        if candidate["last_layers"] == allocation.get("last_layers"):
            return f"{candidate['final_layer_error']:.3f}"
    return "–"


def print_tables(args, original, results):
    names = [text.name.rsplit(".", 1)[0] for text in args.texts]
    digits = lambda values: " | ".join(f"{v:.4g}" for v in values)
    print("Original: " + ", ".join(f"{n} {v:.4g}" for n, v in zip(names, original)) + ".\n")
    print("| ratio | method | ranks | k | error | " + " | ".join(names) + " |")
    print("|---" * (5 + len(names)) + "|")
    for (name, ratio, method, allocation, _), r in results:
        if allocation == "variant":
            continue
        k = r["allocation"].get("last_layers", "–")
        print(f"| {float(ratio):.0%} | {method} | {allocation} | {k} | {final_layer_error(r)} | "
              f"{digits(r['perplexities'])} |")
    print("\n| ratio | tempered, by sensitivity, with | predicted KL | measured KL | "
          + " | ".join(names) + " |")
    print("|---" * (4 + len(names)) + "|")
    for (name, ratio, method, allocation, _), r in results:
        if allocation != "variant" and not (method == "tempered" and allocation == "sensitivity"):
            continue
        a = r["allocation"]
        method = "p=0.6" if method == "tempered" else method
        if "power_curve" in r:
            method += f" ({r['power']})"
        print(f"| {float(ratio):.0%} | {method} | {a['predicted_loss']:.4f} | "
              f"{a['measured_loss']:.4f} | {digits(r['perplexities'])} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--texts", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--calibration", type=pathlib.Path)
    parser.add_argument("--first", action="store_true", help="use the calibration's first windows")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--windows", type=int, default=96, help="of each text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="runs whose name matches this")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    original = [perplexity(args, args.model, text) for text in args.texts]
    runs = [r for r in grid() if re.search(args.only, r[0])]
    print_tables(args, original, [(r, measure(args, r[0], r[4])) for r in runs])


if __name__ == "__main__":
    main()
