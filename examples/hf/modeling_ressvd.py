# SPDX-License-Identifier: Apache-2.0
"""Models of transformers that hold the factored checkpoints of `ressvd-llm compress`.

A matrix W of the original is two thin ones here, y = U(Vx) + b, under the names of the checkpoint:
q_u_proj and q_v_proj for q_proj, fc1_u and fc1_v for fc1. The "ressvd" object of config.json says
which matrices these are and at which ranks; everything else is the original class.
"""
import transformers
from torch import nn


class product:
    """Called by a module in place of its child `name`: the child's two factors, one by one."""

    def __init__(self, parent, u, v):
        self.parent, self.u, self.v = parent, u, v

    def __call__(self, x):
        return getattr(self.parent, self.u)(getattr(self.parent, self.v)(x))


def factor_names(name):
    stem = name.removesuffix("_proj")
    suffix = name[len(stem):]
    return f"{stem}_u{suffix}", f"{stem}_v{suffix}"


def factor(model, ranks):
    """Replaces the linear layers that `ranks` names by factors, to be filled from a checkpoint."""
    for path, rank in ranks.items():
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        dense = getattr(parent, name)
        like = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        u, v = factor_names(name)
        delattr(parent, name)
        parent.add_module(v, nn.Linear(dense.in_features, rank, bias=False, **like))
        parent.add_module(u, nn.Linear(rank, dense.out_features, dense.bias is not None, **like))
        setattr(parent, name, product(parent, u, v))


def factored(base):
    class model(base):
        config_class = base.config_class

        def __init__(self, config, *args, **kwargs):
            super().__init__(config, *args, **kwargs)
            factor(self, getattr(config, "ressvd", {}).get("ranks", {}))

    model.__name__ = model.__qualname__ = "Ressvd" + base.__name__
    return model


RessvdLlamaForCausalLM = factored(transformers.LlamaForCausalLM)
RessvdMistralForCausalLM = factored(transformers.MistralForCausalLM)
RessvdOPTForCausalLM = factored(transformers.OPTForCausalLM)
RessvdQwen2ForCausalLM = factored(transformers.Qwen2ForCausalLM)
RessvdQwen3ForCausalLM = factored(transformers.Qwen3ForCausalLM)
