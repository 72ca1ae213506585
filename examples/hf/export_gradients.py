#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what the gradients of a PyTorch model say of its matrices' outputs, for
`ressvd-llm compress --gradients FILE`.

    python export_gradients.py MODEL FILE --tokens SAMPLES.u16 --samples 64 --seqlen 2048

Arguments as export_grams.py takes them. Labels are drawn from the model's own distribution, so that
the sums are the Fisher information's. For other models and data:

    from export_gradients import drawn_loss, gradient_collector
    with gradient_collector(model) as gradients:
        for batch in batches:  # without padding: every position counts
            drawn_loss(model(batch).logits, generator).backward()
    gradients.save("gradients.safetensors")
"""
import re

import torch
from safetensors.torch import save_file


def drawn_loss(logits, generator=None):
    """Σ −log p of labels that are drawn from the model's distribution at every position."""
    logits = logits.reshape(-1, logits.shape[-1]).float()
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


class gradient_collector:
    """Sums ggᵀ and g²·‖x‖² over the gradients g at the outputs of linear layers with inputs x, from
    now until it is closed. The products of a batch are formed in float32 or float64, the sums are
    float64: 8m² bytes for m outputs. `only` is a regular expression that the names of the layers
    must match somewhere."""

    def __init__(self, model, only="", device=None):
        self.device = device
        self.sums = {}  # name: [Σggᵀ, Σg²‖x‖², tokens]
        self.squares = {}  # name: ‖x‖² of the pass's tokens
        self.hooks = []
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and re.search(only, name):
                self.hooks.append(layer.register_forward_pre_hook(
                    lambda _, args, name=name: self.keep(name, args[0])))
                self.hooks.append(layer.register_full_backward_hook(
                    lambda _, __, outputs, name=name: self.add(name, outputs[0])))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for hook in self.hooks:
            hook.remove()

    @torch.no_grad()
    def keep(self, name, x):
        self.squares[name] = x.reshape(-1, x.shape[-1]).double().square().sum(1)

    @torch.no_grad()
    def add(self, name, g):
        g = g.reshape(-1, g.shape[-1]).to(torch.promote_types(g.dtype, torch.float32))
        weighted = g.double().square() * self.squares.pop(name)[:, None]
        batch = [g.T @ g, weighted.sum(0), len(g)]
        for i in range(2):
            batch[i] = batch[i].to(self.device or g.device).double()
        if name in self.sums:
            batch = [before + new for before, new in zip(self.sums[name], batch)]
        self.sums[name] = batch

    def save(self, path):
        tensors = {}
        for name, (gram, rows, tokens) in self.sums.items():
            if not torch.isfinite(gram).all():
                raise ValueError(f"{name}: its gradients or their products are not finite")
            tensors[f"{name}.gradient_gram"] = gram.cpu()
            tensors[f"{name}.row_importance"] = (rows / tokens).cpu()
            tensors[f"{name}.gradient_tokens"] = torch.tensor([tokens], dtype=torch.float64)
        save_file(tensors, path)


def main():
    # Only for a model that is opened here: the collector itself needs torch alone.
    from model_and_samples import open_model_and_samples, parse_arguments

    args = parse_arguments(__doc__.splitlines()[0])
    model, batches = open_model_and_samples(args)
    generator = torch.Generator(args.device).manual_seed(0)
    with gradient_collector(model, args.only, device="cpu") as gradients:
        for batch in batches:
            drawn_loss(model(batch, use_cache=False).logits, generator).backward()
            model.zero_grad(set_to_none=True)
    gradients.save(args.file)
    print(f"{args.file}: {len(gradients.sums)} matrices, {sum(map(torch.numel, batches))} tokens")


if __name__ == "__main__":
    main()
