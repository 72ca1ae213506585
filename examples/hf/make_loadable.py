#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a factored checkpoint loadable by anything that calls transformers:

    python make_loadable.py CHECKPOINT
    AutoModelForCausalLM.from_pretrained(CHECKPOINT, trust_remote_code=True)

Copies modeling_ressvd.py into it and names the model's class in "auto_map" of its config.json.
"architectures" stays, and `ressvd-llm` reads the checkpoint as before.
"""
import argparse
import json
import pathlib
import shutil

import modeling_ressvd
from load_factored import model_class


def make_loadable(checkpoint):
    file = pathlib.Path(checkpoint) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("ressvd", {}).get("format") != "factored":
        raise ValueError(f"{checkpoint}: is no factored checkpoint of ressvd-llm")
    name = model_class(config["architectures"][0]).__name__
    shutil.copyfile(modeling_ressvd.__file__, file.with_name("modeling_ressvd.py"))
    config["auto_map"] = {"AutoModelForCausalLM": f"modeling_ressvd.{name}"}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    make_loadable(parser.parse_args().checkpoint)
