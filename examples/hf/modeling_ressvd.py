# SPDX-License-Identifier: Apache-2.0
"""Models of transformers that hold the factored checkpoints of `ressvd-llm compress`.

A matrix W of the original is two thin ones here, under the names of the checkpoint. The "ressvd"
object of config.json says which matrices these are, at which ranks and in which form; everything
else is the original class.
  pair      y = U(Vx) + b: q_u_proj and q_v_proj for q_proj, fc1_u and fc1_v for fc1
  pivoted   y = P[z; Cz] + b with z = Zx: q_c_proj, which has C, P and b, and q_z_proj
"""
import torch
import transformers
from torch import nn


class product:
    """Called by a module in place of its child `name`: the child's two factors, one by one."""

    def __init__(self, parent, left, right):
        self.parent, self.left, self.right = parent, left, right

    def __call__(self, x):
        return getattr(self.parent, self.left)(getattr(self.parent, self.right)(x))


class pivoted(nn.Module):
    """z to y = P[z; Cz] + b; `rows` says which element of y each of [z; Cz] is."""

    def __init__(self, rank, outputs, bias, device, dtype):
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(outputs - rank, rank, **like))
        self.bias = nn.Parameter(torch.empty(outputs, **like)) if bias else None
        self.register_buffer("rows", torch.empty(outputs, dtype=torch.int32, device=device))

    def forward(self, z):
        y = torch.cat([z, nn.functional.linear(z, self.weight)], -1)
        y = torch.empty_like(y).index_copy_(-1, self.rows.long(), y)
        return y if self.bias is None else y + self.bias


def factor_name(name, factor):
    stem = name.removesuffix("_proj")
    return f"{stem}_{factor}{name[len(stem):]}"


def factor(model, ranks, form):
    """Replaces the linear layers that `ranks` names by factors, to be filled from a checkpoint."""
    for path, rank in ranks.items():
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        dense = getattr(parent, name)
        like = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        biased = dense.bias is not None
        if form == "pivoted":
            left, right = factor_name(name, "c"), factor_name(name, "z")
            second = pivoted(rank, dense.out_features, biased, **like)
        else:
            left, right = factor_name(name, "u"), factor_name(name, "v")
            second = nn.Linear(rank, dense.out_features, biased, **like)
        delattr(parent, name)
        parent.add_module(right, nn.Linear(dense.in_features, rank, bias=False, **like))
        parent.add_module(left, second)
        setattr(parent, name, product(parent, left, right))


def factored(base):
    class model(base):
        config_class = base.config_class

        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            compressed = getattr(config, "ressvd", {})
            factor(self, compressed.get("ranks", {}), compressed.get("form", "pair"))

    model.__name__ = model.__qualname__ = "Ressvd" + base.__name__
    return model


RessvdLlamaForCausalLM = factored(transformers.LlamaForCausalLM)
RessvdMistralForCausalLM = factored(transformers.MistralForCausalLM)
RessvdOPTForCausalLM = factored(transformers.OPTForCausalLM)
RessvdQwen2ForCausalLM = factored(transformers.Qwen2ForCausalLM)
RessvdQwen3ForCausalLM = factored(transformers.Qwen3ForCausalLM)
RessvdGemma2ForCausalLM = factored(transformers.Gemma2ForCausalLM)
RessvdGemma3ForCausalLM = factored(transformers.Gemma3ForCausalLM)
