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
import torch

from layer_sums import layer_sums, wide_rows


def drawn_loss(logits, generator=None):
    """Σ −log p of labels that are drawn from the model's distribution at every position."""
    logits = logits.reshape(-1, logits.shape[-1]).float()
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


class gradient_collector(layer_sums):
    """Sums ggᵀ and g²·‖x‖² over the gradients g at the outputs of linear layers with inputs x: 8m²
    bytes for m outputs."""

    def __init__(self, model, only="", device=None):
        self.squares = {}  # name: ‖x‖² of the pass's tokens
        super().__init__(model, only, device)

    def hook(self, name, layer):
        self.hooks.append(layer.register_forward_pre_hook(
            lambda _, args: self.keep(name, args[0])))
        self.hooks.append(layer.register_full_backward_hook(
            lambda _, __, outputs: self.add(name, outputs[0])))

    @torch.no_grad()
    def keep(self, name, x):
        self.squares[name] = x.reshape(-1, x.shape[-1]).double().square().sum(1)

    @torch.no_grad()
    def add(self, name, g):
        g = wide_rows(g)
        rows = g.double().square() * self.squares.pop(name)[:, None]
        self.add_sums(name, g.T @ g, rows.sum(0), len(g))

    def save(self, path):
        self.save_as(path, "gradients", "gradient_gram", "row_importance", "gradient_tokens")


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
