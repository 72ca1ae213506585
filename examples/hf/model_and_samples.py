# SPDX-License-Identifier: Apache-2.0
"""What the exporting scripts share: their arguments, the model and the windows of samples."""
import argparse
import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def parse_arguments(description):
    parser = argparse.ArgumentParser(description=description)
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
    return parser.parse_args()


def read_ids(path, tokenizer):
    suffix = pathlib.Path(path).suffix
    if suffix == ".npy":
        ids = np.load(path).reshape(-1)
    elif suffix in (".u16", ".u32"):
        ids = np.fromfile(path, "<u" + ("2" if suffix == ".u16" else "4"))
    else:
        ids = tokenizer()(pathlib.Path(path).read_text(encoding="utf-8"))["input_ids"]
    return torch.from_numpy(np.asarray(ids, np.int64))


def open_model_and_samples(args):
    """The model and its batches of windows × seqlen token ids."""
    trust = {"trust_remote_code": args.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, **trust)
    model.eval().to(args.device)
    ids = read_ids(args.tokens, lambda: AutoTokenizer.from_pretrained(args.model, **trust))
    seqlen = min(args.seqlen, getattr(model.config, "max_position_embeddings", args.seqlen))
    if len(ids) < args.samples * seqlen:
        raise SystemExit(f"{args.tokens}: holds {len(ids)} tokens, {args.samples} windows of "
                         f"{seqlen} need {args.samples * seqlen}")
    windows = ids[:args.samples * seqlen].reshape(args.samples, seqlen)
    return model, windows.to(args.device).split(args.batch)
