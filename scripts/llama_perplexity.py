#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What llama-perplexity measures, by the libllama of the package llama-cpp-py-sync: for
scripts/llama_cpp.sh where llama.cpp shall not be built.

    pip install llama-cpp-py-sync cffi numpy
    python llama_perplexity.py -m MODEL.gguf -f TEXT [-c WINDOW] [--lora ADAPTER.gguf]
"""
import argparse
import os
import pathlib
import sys

import numpy as np
from llama_cpp_py_sync import _cffi_bindings as bindings
from llama_cpp_py_sync._version import __llama_cpp_tag__ as version

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("-m", dest="model", required=True)
parser.add_argument("-f", dest="text", required=True)
parser.add_argument("-c", dest="window", type=int, default=512)
parser.add_argument("--lora")
args = parser.parse_args()

ffi = bindings.get_ffi()
lib = bindings.get_lib()


@ffi.callback("void(enum ggml_log_level, const char *, void *)")
def errors_only(level, text, _):
    if level == lib.GGML_LOG_LEVEL_ERROR:
        sys.stderr.write(ffi.string(text).decode(errors="replace"))


def require(value, what):
    if not value:
        sys.exit(f"llama.cpp cannot {what}")
    return value


lib.llama_log_set(errors_only, ffi.NULL)
lib.llama_backend_init()
model = require(lib.llama_model_load_from_file(args.model.encode(), lib.llama_model_default_params()),
                f"load {args.model}")
options = lib.llama_context_default_params()
options.n_ctx = options.n_batch = args.window
options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
context = require(lib.llama_init_from_model(model, options), "make a context")
if args.lora:
    adapter = require(lib.llama_adapter_lora_init(model, args.lora.encode()), f"load {args.lora}")
    failed = lib.llama_set_adapters_lora(context, ffi.new("struct llama_adapter_lora *[]", [adapter]),
                                         1, ffi.new("float[]", [1.0]))
    require(failed == 0, f"apply {args.lora}")

vocabulary = lib.llama_model_get_vocab(model)
size = lib.llama_vocab_n_tokens(vocabulary)
text = pathlib.Path(args.text).read_bytes()
buffer = ffi.new("llama_token[]", len(text) + 2)
count = lib.llama_tokenize(vocabulary, text, len(text), buffer, len(text) + 2, True, False)
tokens = np.frombuffer(ffi.buffer(buffer), dtype=np.int32)[:count].copy()

half = args.window // 2
losses = []
for start in range(0, count - args.window + 1, args.window):
    window = tokens[start:start + args.window].copy()
    targets = window[half + 1:].copy()
    if lib.llama_vocab_get_add_bos(vocabulary):
        window[0] = lib.llama_vocab_bos(vocabulary)
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    batch = lib.llama_batch_init(args.window, 0, 1)
    batch.n_tokens = args.window
    for i, token in enumerate(window):
        batch.token[i] = int(token)
        batch.pos[i] = i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = half <= i
    require(lib.llama_decode(context, batch) == 0, "compute")
    logits = np.frombuffer(ffi.buffer(lib.llama_get_logits(context), len(targets) * size * 4),
                           dtype=np.float32).reshape(len(targets), size).astype(np.float64)
    lib.llama_batch_free(batch)
    peak = logits.max(axis=1)
    normaliser = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    losses.extend(normaliser - logits[np.arange(len(targets)), targets])
if not losses:
    sys.exit(f"{args.text}: {count} tokens do not fill a window of {args.window}")
print(f"llama.cpp {version}, {len(losses)} tokens predicted")
print(f"Final estimate: PPL = {np.exp(np.mean(losses)):.4f}")
