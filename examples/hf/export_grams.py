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
import torch

from layer_sums import layer_sums, wide_rows


class gram_collector(layer_sums):
    """Sums xxᵀ and |x| over the inputs x of linear layers: 8n² bytes for n features.

    Layers that read the same tensor (q, k and v; gate and up) share the sums, which bear the name
    of the first.
    """

    def __init__(self, model, only="", device=None):
        self.owners = {}  # name: the layer whose sums its input enters
        self.last = (None, 0, "")  # an input, its version and the owner of its sums
        super().__init__(model, only, device)

    def hook(self, name, layer):
        self.hooks.append(layer.register_forward_pre_hook(
            lambda _, args: self.observe(name, args[0])))

    def close(self):
        super().close()
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
            x = wide_rows(x)
            self.add_sums(name, x.T @ x, x.abs().sum(0, dtype=torch.float64), len(x))

    def save(self, path):
        self.save_as(path, "inputs", "gram", "mean_abs", "tokens")


def main():
    # Only for a model that is opened here: the collector itself needs torch alone.
    from model_and_samples import open_model_and_samples, parse_arguments

    args = parse_arguments(__doc__.splitlines()[0])
    model, batches = open_model_and_samples(args)
    with torch.no_grad(), gram_collector(model, args.only, device="cpu") as grams:
        for batch in batches:
            model(batch, use_cache=False)
    grams.save(args.file)
    print(f"{args.file}: {len(grams.sums)} Grams of {sum(map(torch.numel, batches))} tokens")


if __name__ == "__main__":
    main()
