#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes mean squared gradients of a PyTorch model for `ressvd-llm compress --fisher FILE`.

    python export_fisher.py MODEL FILE --tokens SAMPLES.u16 --samples 256 --seqlen 2048

The Fisher information of FWSVD (arXiv 2207.00112, eq. 4): for every weight of the linear layers the
mean over the windows of the squared gradient of the window's mean loss. MODEL and SAMPLES are those
of export_grams.py. Takes the memory of a backward pass and 4 bytes a weight for the sums.
"""
import re

import torch
from safetensors.torch import save_file

from model_and_samples import open_model_and_samples, parse_arguments


def fisher_information(model, windows, only=""):
    """{weight's name: mean squared gradient} over windows, each a row of token ids."""
    weights = {f"{name}.weight": layer.weight for name, layer in model.named_modules()
               if isinstance(layer, torch.nn.Linear) and re.search(only, name)}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32)
            for name, weight in weights.items()}
    for window in windows:
        loss = model(window[None], labels=window[None], use_cache=False).loss
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for total, gradient in zip(sums.values(), gradients):
            total += gradient.float().square()
    return {name: total / len(windows) for name, total in sums.items()}


def main():
    args = parse_arguments(__doc__.splitlines()[0])
    model, batches = open_model_and_samples(args)
    fisher = fisher_information(model, torch.cat(batches), args.only)
    for name, values in fisher.items():
        if not torch.isfinite(values).all():
            raise SystemExit(f"{name}: its gradients or their squares are not finite")
    save_file({name: values.cpu().contiguous() for name, values in fisher.items()}, args.file)
    print(f"{args.file}: {len(fisher)} matrices, {args.samples} windows")


if __name__ == "__main__":
    main()
