#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the Grams of a PyTorch model's activations for `ressvd-llm compress --grams FILE`.

    python export_grams.py MODEL FILE --tokens SAMPLES.u16 --samples 256 --seqlen 2048

MODEL is what AutoModelForCausalLM.from_pretrained takes. SAMPLES holds token ids: .u16 or .u32, as
`ressvd-llm sample` writes them, or .npy; any other file is a text for the model's tokenizer. The
first windows are taken. For other models and data:

    from export_grams import gram_collector
    with torch.no_grad(), gram_collector(model) as grams:
        for batch in batches:  # without padding: every position counts
            model(batch)
    grams.save("grams.safetensors")
"""
import argparse
import pathlib
import re

import numpy as np
import torch
from safetensors.torch import save_file


class gram_collector:
    """Sums xxᵀ and |x| over the inputs x of linear layers, from now until it is closed.

    Layers that read the same tensor (q, k and v; gate and up) share the sums, which bear the name
    of the first. The products of a batch are formed in float32 or float64, the sums are float64: 8n²
    bytes for n features, on `device` (by default where the input is). `only` is a regular
    expression that the names of the layers must match somewhere.
    """

    def __init__(self, model, only="", device=None):
        self.device = device
        self.sums = {}  # name: [Σxxᵀ, Σ|x|, tokens]
        self.owners = {}  # name: the layer whose sums its input enters
        self.last = (None, 0, "")  # an input, its version and the owner of its sums
        self.hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: self.observe(name, args[0]))
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear) and re.search(only, name)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for hook in self.hooks:
            hook.remove()
        self.last = (None, 0, "")

    def observe(self, name, x):
        version = 0 if x.is_inference() else x._version
        same = x is self.last[0] and version == self.last[1]
        owner = self.last[2] if same else name
        if self.owners.setdefault(name, owner) != owner:
            raise ValueError(f"{name}: shares its input with {self.owners[name]} in some passes, "
                             f"with {owner} in others")
        if owner == name:
            self.add(name, x)
        self.last = (x, version, owner)

    @torch.no_grad()
    def add(self, name, x):
        with torch.autocast(x.device.type, enabled=False):
            x = x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
            batch = [x.T @ x, x.abs().sum(0, dtype=torch.float64), len(x)]
        for i in range(2):
            batch[i] = batch[i].to(self.device or x.device).double()
        if name in self.sums:
            batch = [before + new for before, new in zip(self.sums[name], batch)]
        self.sums[name] = batch

    def save(self, path):
        tensors = {}
        for name, (gram, abs_sum, tokens) in self.sums.items():
            if not torch.isfinite(gram).all():
                raise ValueError(f"{name}: its inputs or their products are not finite")
            tensors[f"{name}.gram"] = gram.cpu()
            tensors[f"{name}.mean_abs"] = (abs_sum / tokens).cpu()
            tensors[f"{name}.tokens"] = torch.tensor([tokens], dtype=torch.float64)
        save_file(tensors, path)


def read_ids(path, tokenizer):
    suffix = pathlib.Path(path).suffix
    if suffix == ".npy":
        ids = np.load(path).reshape(-1)
    elif suffix in (".u16", ".u32"):
        ids = np.fromfile(path, "<u" + ("2" if suffix == ".u16" else "4"))
    else:
        ids = tokenizer()(pathlib.Path(path).read_text(encoding="utf-8"))["input_ids"]
    return torch.from_numpy(np.asarray(ids, np.int64))


def main():
    # Only for a model that is opened here: the collector itself needs torch alone.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("file", metavar="FILE", help="safetensors file to write")
    parser.add_argument("--tokens", required=True, metavar="SAMPLES")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seqlen", type=int, default=2048, help="at most the model's context")
    parser.add_argument("--batch", type=int, default=1, help="windows at a time")
    parser.add_argument("--only", default="", help="regular expression for the layers' names")
    parser.add_argument("--dtype", default="auto", help="of the model, for example float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trust-remote-code", action="store_true")
    args = parser.parse_args()

    trust = {"trust_remote_code": args.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, **trust)
    model.eval().to(args.device)
    ids = read_ids(args.tokens, lambda: AutoTokenizer.from_pretrained(args.model, **trust))
    seqlen = min(args.seqlen, getattr(model.config, "max_position_embeddings", args.seqlen))
    if len(ids) < args.samples * seqlen:
        parser.error(f"{args.tokens}: holds {len(ids)} tokens, {args.samples} windows of {seqlen} "
                     f"need {args.samples * seqlen}")
    windows = ids[:args.samples * seqlen].reshape(args.samples, seqlen)
    with torch.no_grad(), gram_collector(model, args.only, device="cpu") as grams:
        for batch in windows.split(args.batch):
            model(batch.to(args.device), use_cache=False)
    grams.save(args.file)
    print(f"{args.file}: {len(grams.sums)} Grams of {windows.numel()} tokens")


if __name__ == "__main__":
    main()
