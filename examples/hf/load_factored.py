#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Opens a checkpoint of `ressvd-llm compress --format factored` with transformers, as it is.

    from load_factored import load
    model = load("OUT", dtype=torch.bfloat16)

Needs no trust_remote_code and changes nothing in OUT; for programs that know only
AutoModelForCausalLM see make_loadable.py.
"""
from transformers import AutoConfig

import modeling_ressvd


def model_class(architecture):
    """The factored form of a class of transformers, such as LlamaForCausalLM."""
    found = getattr(modeling_ressvd, "Ressvd" + architecture, None)
    if found is None:
        raise ValueError(f"architecture {architecture} is not supported")
    return found


def load(path, **options):
    """The model at `path`; the options are those of transformers' from_pretrained."""
    config = AutoConfig.from_pretrained(path)
    if getattr(config, "ressvd", {}).get("format") != "factored":
        raise ValueError(f"{path}: is no factored checkpoint of ressvd-llm")
    model, report = model_class(config.architectures[0]).from_pretrained(
        path, output_loading_info=True, **options)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise ValueError(f"{path}: {problem}: {sorted(report[problem])}")
    return model
