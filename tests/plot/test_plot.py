#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of examples/plot.py on reports of the program: test_plot.py PROGRAM. Exit status 77:
matplotlib is missing, only the message that says so was tested."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

root = pathlib.Path(__file__).resolve().parents[2]
model = root / "tests/llm/fixtures/llama"
program = ""
scratch = tempfile.TemporaryDirectory()
folder = pathlib.Path(scratch.name)
has_matplotlib = importlib.util.find_spec("matplotlib") is not None


def run(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False,
                          **options)


def plot(*arguments, **options):
    return run(sys.executable, "-B", root / "examples/plot.py", *arguments, **options)


def ressvd_llm(*arguments):
    done = run(program, *arguments, "--threads", 1)
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.stderr}")


def compress(name, *options):
    ressvd_llm("compress", model, folder / name, "--method", "svd-llm", "--samples", 16, "--seqlen",
               16, "--heldout-samples", 4, "--json", folder / f"{name}.json", *options)
    return folder / f"{name}.json"


class without_matplotlib(unittest.TestCase):
    def test_message(self):
        blocked = folder / "blocked"
        blocked.mkdir()
        (blocked / "matplotlib.py").write_text("raise ImportError('blocked')\n")
        report = folder / "empty.json"
        report.write_text('{"matrices": []}')
        done = plot("ratio", report, "-o", folder / "none.svg",
                    env={**os.environ, "PYTHONPATH": str(blocked)})
        self.assertEqual(done.returncode, 1)
        self.assertIn("plot.py needs matplotlib", done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_files_that_are_no_reports(self):
        for content in ("", "[1, 2]", "{}", '{"models": []}'):
            file = folder / "wrong.json"
            file.write_text(content)
            done = plot("ranks", file, "-o", folder / "none.svg")
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"{file}: ", done.stderr)
            self.assertNotIn("Traceback", done.stderr)
        self.assertNotEqual(plot("ranks", folder / "missing.json", "-o", "none.svg").returncode, 0)
        self.assertFalse((folder / "none.svg").exists())


@unittest.skipUnless(has_matplotlib, "matplotlib is missing")
class charts(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.all = compress("all", "--ratio", 0.4, "--last-layers", "all")
        cls.auto = compress("auto", "--ratio", 0.3, "--last-layers", "auto")
        cls.fitted = compress("fitted", "--ratio", 0.4, "--last-layers", "all", "--retruncate")
        cls.compared = folder / "compared.json"
        ressvd_llm("compare", model, folder / "all", folder / "auto", "--samples", 4, "--seqlen",
                   16, "--json", cls.compared)

    def drawn(self, chart, *reports):
        """The SVG, which must be the same each time."""
        texts = []
        for name in ("first.svg", "second.svg"):
            done = plot(chart, *reports, "-o", folder / name)
            self.assertEqual(done.returncode, 0, done.stderr)
            texts.append((folder / name).read_text())
        self.assertEqual(texts[0], texts[1])
        return texts[0]

    def shows(self, svg, *labels):
        for label in labels:
            self.assertIn(f">{label}<", svg)

    def test_search(self):
        self.shows(self.drawn("search", self.all, self.auto), "svd-llm, ratio 0.40",
                   "svd-llm, ratio 0.30", "last layers compressed")

    def test_ratio(self):
        self.shows(self.drawn("ratio", self.all, self.auto, self.fitted), "svd-llm, uniform",
                   "svd-llm, last-layers", "svd-llm, retruncate, uniform", "original")

    def test_ranks(self):
        svg = self.drawn("ranks", self.all)
        self.shows(svg, "q_proj", "down_proj", "svd-llm, uniform, ratio 0.40: % kept")
        for matrix in json.loads(self.all.read_text())["matrices"]:
            m, n, r = (matrix[key] for key in ("rows", "cols", "rank"))
            self.shows(svg, f"{100 * r * (m + n - r) / (m * n):.0f}")  # pivoted

    def test_errors(self):
        self.shows(self.drawn("errors", self.compared), "all", "auto", "after layer")

    def test_reports_without_what_is_drawn(self):
        report = json.loads(self.all.read_text())
        report["heldout"] = None
        report["allocation"].pop("search")
        bare = folder / "bare.json"
        bare.write_text(json.dumps(report))
        for chart, message in (("ratio", "no report has a held-out perplexity"),
                               ("search", "no report has a search"),
                               ("errors", "is no report of 'ressvd-llm compare --json'")):
            done = plot(chart, bare, "-o", folder / "bare.svg")
            self.assertEqual(done.returncode, 1)
            self.assertIn(message, done.stderr)
        self.assertFalse((folder / "bare.svg").exists())


if __name__ == "__main__":
    program = sys.argv.pop(1)
    result = unittest.main(exit=False).result
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(0 if has_matplotlib else 77)
