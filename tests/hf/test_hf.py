#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of examples/hf against the program: test_hf.py PROGRAM. Exit status 77: torch, transformers
or safetensors is missing, nothing was tested."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

root = pathlib.Path(__file__).resolve().parents[2]
fixtures = root / "tests/llm/fixtures"
# modeling_ressvd.py has no mixtures of experts.
families = sorted(config.parent.name for config in fixtures.glob("*/config.json")
                  if "experts" not in config.read_text())
program = ""
scratch = tempfile.TemporaryDirectory()

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = scratch.name + "/modules"
sys.dont_write_bytecode = True
sys.path.insert(0, str(root / "examples/hf"))
try:
    import numpy as np
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, __version__
    from transformers.utils import logging

    from export_fisher import fisher_information
    from export_gradients import drawn_loss, gradient_collector
    from export_grams import gram_collector
    from load_factored import load
    from make_loadable import make_loadable
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)


def ressvd_llm(*arguments):
    """Runs the program and returns its report."""
    report = pathlib.Path(scratch.name) / "report.json"
    done = subprocess.run([program, *map(str, arguments), "--threads", "1", "--json", report],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.stderr}")
    return json.loads(report.read_text())


def compress(family, output, *options):
    return ressvd_llm("compress", fixtures / family, output, "--preset", "ressvd", "--ratio", 0.4,
                      "--last-layers", "all", "--dtype", "f32", "--seqlen", 32, *options)


def log_probabilities(model, windows):
    with torch.no_grad():
        return model(windows).logits.double().log_softmax(-1)


def mean_loss(model, ids, seqlen):
    """The program's: windows of seqlen tokens, of which all but the first are predicted."""
    windows = ids[:len(ids) // seqlen * seqlen].reshape(-1, seqlen)
    predicted = log_probabilities(model, windows)[:, :-1]
    return -predicted.gather(2, windows[:, 1:, None]).mean().item()


class factored_checkpoints(unittest.TestCase):
    def agree(self, family, form):
        config = json.loads((fixtures / family / "config.json").read_text())
        usual = {"rope_type": "default", "rope_theta": 10000.0}
        if __version__ < "5" and config.get("rope_parameters", usual) != usual:
            self.skipTest(f"transformers {__version__} does not know rope_parameters")
        tokens = fixtures / family / "tokens.u16"
        ids = torch.from_numpy(np.fromfile(tokens, "<u2").astype(np.int64))
        output = pathlib.Path(scratch.name) / f"{family}-{form}"
        compress(family, output, "--samples", 16, "--heldout-samples", 0, "--form", form)
        model = load(output, dtype=torch.float32)
        make_loadable(output)
        make_loadable(output)  # once more changes nothing
        remote = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True,
                                                      dtype=torch.float32)
        windows = ids.reshape(2, -1)
        self.assertTrue(torch.equal(model(windows).logits, remote(windows).logits))
        # Soft caps are for eager attention alone.
        for attention in ("eager",) if family == "gemma2" else ("eager", "sdpa"):
            other = load(output, dtype=torch.float32, attn_implementation=attention)
            torch.testing.assert_close(other(windows).logits, model(windows).logits, rtol=1e-4,
                                       atol=1e-4)

        # The program reads the checkpoint as before. Float32 rounding through two layers moves
        # logits, and with them the losses, by some 1e-6 of their size.
        for seqlen in (7, 40):
            own = ressvd_llm("perplexity", output, "--tokens", tokens, "--seqlen", seqlen)
            self.assertAlmostEqual(mean_loss(model, ids, seqlen) / own["mean_loss"], 1, delta=1e-5)

        # KL(original ‖ compressed) involves every logit.
        original = AutoModelForCausalLM.from_pretrained(fixtures / family, dtype=torch.float32)
        p = log_probabilities(original, windows)[:, :-1]
        q = log_probabilities(model, windows)[:, :-1]
        divergence = (p.exp() * (p - q)).sum(-1).mean().item()
        own = ressvd_llm("compare", fixtures / family, output, "--tokens", tokens, "--seqlen", 40)
        reported = own["models"][1]["texts"][0]["divergence"]
        self.assertGreater(reported, 1e-3)
        self.assertAlmostEqual(divergence / reported, 1, delta=1e-4)

    def test_wrong_checkpoints(self):
        output = pathlib.Path(scratch.name) / "dense"
        compress("llama", output, "--samples", 16, "--heldout-samples", 0, "--format", "dense")
        for refuse in (load, make_loadable):
            with self.assertRaisesRegex(ValueError, "dense: is no factored checkpoint"):
                refuse(output)
        self.assertFalse((output / "modeling_ressvd.py").exists())

    def test_save_and_load_again(self):
        output = pathlib.Path(scratch.name) / "first"
        again = pathlib.Path(scratch.name) / "again"
        compress("qwen2", output, "--samples", 16, "--heldout-samples", 0)
        model = load(output)
        model.save_pretrained(again)
        self.assertEqual(sorted(load_file(again / "model.safetensors")),
                         sorted(load_file(output / "model.safetensors")))


for name in families:
    for form in ("pair", "pivoted"):
        def test(self, family=name, form=form):
            self.agree(family, form)
        setattr(factored_checkpoints, f"test_{name}_{form}", test)


class exported_grams(unittest.TestCase):
    def test_sums(self):
        x = torch.randn(5, 7, 3, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
        first = torch.nn.Linear(3, 4).bfloat16()
        model = torch.nn.ModuleDict({"first": first, "second": torch.nn.Linear(3, 2).bfloat16(),
                                     "other": torch.nn.Linear(3, 2).bfloat16()})
        with torch.no_grad(), gram_collector(model) as grams:
            for batch in x.split(2):
                model["first"](batch)
                model["second"](batch)
                model["other"](batch.clone())
        model["first"](x)  # not seen any more
        file = scratch.name + "/sums.safetensors"
        grams.save(file)
        saved = load_file(file)
        # `second` reads the tensor that `first` has read, `other` an equal one.
        self.assertEqual(sorted(saved), sorted(f"{name}.{what}" for name in ("first", "other")
                                               for what in ("gram", "mean_abs", "tokens")))
        tokens = x.reshape(-1, 3).double()
        torch.testing.assert_close(saved["first.gram"], tokens.T @ tokens, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(saved["first.mean_abs"], tokens.abs().mean(0))
        self.assertEqual(saved["first.tokens"].tolist(), [35])
        torch.testing.assert_close(saved["other.gram"], saved["first.gram"])

    def test_non_finite_inputs(self):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        with torch.no_grad(), gram_collector(model) as grams:
            model(torch.tensor([[1.0, float("inf")]]))
        with self.assertRaisesRegex(ValueError, "0: its inputs"):
            grams.save(scratch.name + "/bad.safetensors")

    def agree(self, family):
        """Compression with exported Grams is that with Grams of the same tokens."""
        tokens = pathlib.Path(scratch.name) / "samples.u16"
        ids = np.random.default_rng(1).integers(0, 80, 28 * 32)
        ids.astype("<u2").tofile(tokens)
        grams = pathlib.Path(scratch.name) / f"{family}.safetensors"
        subprocess.run([sys.executable, root / "examples/hf/export_grams.py", fixtures / family,
                        grams, "--tokens", tokens, "--samples", "24", "--seqlen", "32", "--batch",
                        "5", "--dtype", "float32"], capture_output=True, check=True)
        for method in ("ressvd", "asvd"):
            output = pathlib.Path(scratch.name) / f"{family}-{method}"
            same = ("--calibration", tokens, "--windows", "first", "--samples", 24,
                    "--heldout-samples", 4, "--method", method)
            direct = compress(family, f"{output}-direct", *same)
            given = compress(family, f"{output}-given", *same, "--grams", grams)
            self.assertEqual(given["samples"]["count"], 0)
            self.assertEqual(len(given["matrices"]), len(direct["matrices"]))
            for a, b in zip(direct["matrices"], given["matrices"]):
                self.assertEqual((a["name"], a["rank"]), (b["name"], b["rank"]))
                self.assertIsNotNone(a["rank"])
                # The Grams differ by float32 rounding. A loss is stationary in the basis where it
                # is minimised; where it is not (the residual stage, asvd) it moves as the basis
                # does, by that rounding over the gaps of the spectrum.
                for loss in ("activation_loss", "weight_loss"):
                    self.assertEqual(loss in a, loss in b)
                    if loss in a:
                        self.assertAlmostEqual(b[loss]["relative"] / a[loss]["relative"], 1,
                                               delta=1e-3)
            self.assertAlmostEqual(given["heldout"]["compressed_perplexity"] /
                                   direct["heldout"]["compressed_perplexity"], 1, delta=1e-3)

    def test_fisher(self):
        """Squares of finite differences, and a file that the program takes."""
        model = AutoModelForCausalLM.from_pretrained(fixtures / "llama", dtype=torch.float64)
        tokens = pathlib.Path(scratch.name) / "fisher.u16"
        ids = np.random.default_rng(2).integers(0, 80, 4 * 32)
        ids.astype("<u2").tofile(tokens)
        windows = torch.from_numpy(ids.reshape(4, 32))
        fisher = fisher_information(model, windows)
        name = "model.layers.1.mlp.down_proj.weight"
        weight = model.get_parameter(name)
        step = 1e-2  # norms compute in float32: a smaller one is lost in their rounding
        slopes = []
        with torch.no_grad():
            for window in windows:
                losses = []
                for sign in (1, -1):
                    weight[2, 3] += sign * step
                    losses.append(model(window[None], labels=window[None]).loss.item())
                    weight[2, 3] -= sign * step
                slopes.append((losses[0] - losses[1]) / (2 * step))
        expected = np.mean(np.square(slopes))
        self.assertAlmostEqual(fisher[name][2, 3].item() / expected, 1, delta=0.02)

        file = pathlib.Path(scratch.name) / "fisher.safetensors"
        subprocess.run([sys.executable, root / "examples/hf/export_fisher.py", fixtures / "llama",
                        file, "--tokens", tokens, "--samples", "4", "--seqlen", "32", "--dtype",
                        "float64", "--only", "layers"], capture_output=True, check=True)
        torch.testing.assert_close(load_file(file)[name], fisher[name])
        report = compress("llama", scratch.name + "/fwsvd", "--method", "fwsvd", "--fisher", file)
        self.assertTrue(all("activation_loss" in m for m in report["matrices"]))

    def test_gradients(self):
        """Sums of single tokens' gradients of the weights, and a file that the program takes."""
        model = AutoModelForCausalLM.from_pretrained(fixtures / "llama", dtype=torch.float64)
        tokens = pathlib.Path(scratch.name) / "gradients.u16"
        np.random.default_rng(3).integers(0, 80, 24 * 16).astype("<u2").tofile(tokens)
        ids = torch.from_numpy(np.fromfile(tokens, "<u2").astype(np.int64))[None, :16]
        name = "model.layers.1.self_attn.v_proj"
        weight = model.get_parameter(name + ".weight")
        with gradient_collector(model) as gradients:
            logits = model(ids).logits
            drawn_loss(logits, torch.Generator().manual_seed(1)).backward()
        gram, rows, count = gradients.sums[name]
        self.assertEqual(count, 16)
        # Σ over tokens of g·xᵀ is the weight's gradient; of one token it is of rank 1.
        torch.testing.assert_close(gram, gram.T)
        self.assertGreaterEqual(torch.linalg.eigvalsh(gram)[0].item(), -1e-12)
        self.assertTrue((rows >= 0).all() and rows.sum() > 0)
        one = ids[:, :1]
        model.zero_grad()
        with gradient_collector(model) as gradients:
            drawn_loss(model(one).logits, torch.Generator().manual_seed(1)).backward()
        torch.testing.assert_close(gradients.sums[name][1], weight.grad.square().sum(1))

        file = pathlib.Path(scratch.name) / "gradients.safetensors"
        subprocess.run([sys.executable, root / "examples/hf/export_gradients.py",
                        fixtures / "llama", file, "--tokens", tokens, "--samples", "24",
                        "--seqlen", "16", "--dtype", "float32"], capture_output=True, check=True)
        report = compress("llama", scratch.name + "/kfac", "--method", "kfac-svd",
                          "--gradients", file)
        self.assertTrue(all("curvature_loss" in m for m in report["matrices"] if m["rank"]))

    def test_llama(self):
        self.agree("llama")

    def test_opt(self):
        self.agree("opt")


if __name__ == "__main__":
    program = sys.argv.pop(1)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    unittest.main()
