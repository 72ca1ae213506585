# SPDX-License-Identifier: Apache-2.0
"""What the collectors of statistics share: hooks on linear layers, and sums of what they see."""
import re

import torch
from safetensors.torch import save_file


class layer_sums:
    """Sums of pairs of tensors and a number of tokens, by the layer's name, from now until it is
    closed. The products of a batch are formed in float32 or float64, the sums are float64, on
    `device` (by default where the batch is). `only` is a regular expression that the names of the
    layers must match somewhere."""

    def __init__(self, model, only="", device=None):
        self.device = device
        self.sums = {}
        self.hooks = []
        for name, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear) and re.search(only, name):
                self.hook(name, layer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for hook in self.hooks:
            hook.remove()

    def add_sums(self, name, first, second, tokens):
        batch = [x.to(self.device or x.device).double() for x in (first, second)] + [tokens]
        if name in self.sums:
            batch = [before + new for before, new in zip(self.sums[name], batch)]
        self.sums[name] = batch

    def save_as(self, path, what, first, mean, tokens):
        """`first`, `mean` and `tokens` name the tensors behind the layer's name; the second sum is
        divided by the number of tokens."""
        tensors = {}
        for name, (gram, second, count) in self.sums.items():
            if not torch.isfinite(gram).all():
                raise ValueError(f"{name}: its {what} or their products are not finite")
            tensors[f"{name}.{first}"] = gram.cpu()
            tensors[f"{name}.{mean}"] = (second / count).cpu()
            tensors[f"{name}.{tokens}"] = torch.tensor([count], dtype=torch.float64)
        save_file(tensors, path)


def wide_rows(x):
    """Tokens × features in float32 or float64."""
    return x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
