# SPDX-License-Identifier: Apache-2.0
"""Writes a model of random weights in a known shape, to time and to fit memory by.

    python3 synthetic_checkpoint.py llama-7b OUT [--layers 4] [--dtype bf16] [--seed 0]

Every matrix is noise plus a rank-64 part whose singular values fall like 1/√i, so that spectra have a
few strong directions and a long tail; its norm keeps activations at the size of their inputs. OUT gets
config.json, safetensors files of about 4 GiB, their index, and tokens.u32: ids whose frequencies fall
like 1/rank. NumPy alone is needed. What such a model says of quality is nothing.
"""
import argparse
import json
import math
import pathlib
import struct

import numpy as np

SHAPES = {
    "llama-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                     num_attention_heads=32, num_key_value_heads=32, vocab_size=32000,
                     max_position_embeddings=4096, rope_theta=10000.0),
    "llama-3-8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                       num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
                       max_position_embeddings=8192, rope_theta=500000.0),
    "llama-2-70b": dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                        num_attention_heads=64, num_key_value_heads=8, vocab_size=32000,
                        max_position_embeddings=4096, rope_theta=10000.0),
    "tiny": dict(hidden_size=64, intermediate_size=160, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, vocab_size=256,
                 max_position_embeddings=128, rope_theta=10000.0),
}
TYPES = {"bf16": ("BF16", "bfloat16", 2), "f16": ("F16", "float16", 2), "f32": ("F32", "float32", 4)}
FILE_BYTES = 4 << 30
STRONG = 64  # directions


def stored(values, dtype):
    if dtype == "f32":
        return values.astype("<f4").tobytes()
    if dtype == "f16":
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def matrix(rng, rows, cols):
    values = rng.standard_normal((rows, cols), dtype=np.float32)
    rank = min(STRONG, rows, cols)
    sizes = np.sqrt(rows * cols / rank) / np.sqrt(1 + np.arange(rank, dtype=np.float32))
    left = rng.standard_normal((rows, rank), dtype=np.float32) / math.sqrt(rows)
    right = rng.standard_normal((rank, cols), dtype=np.float32) / math.sqrt(cols)
    values += (left * sizes) @ right
    return values * (0.5 / math.sqrt(cols))


def tensors(config):
    """Names and shapes in the order of the layers."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        start = f"model.layers.{layer}."
        yield start + "input_layernorm.weight", (hidden,)
        for name, rows, cols in (("q", hidden, hidden), ("k", kv, hidden), ("v", kv, hidden),
                                 ("o", hidden, hidden)):
            yield f"{start}self_attn.{name}_proj.weight", (rows, cols)
        yield start + "post_attention_layernorm.weight", (hidden,)
        for name, rows, cols in (("gate", inner, hidden), ("up", inner, hidden),
                                 ("down", hidden, inner)):
            yield f"{start}mlp.{name}_proj.weight", (rows, cols)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config["vocab_size"], hidden)


def shards(config, size):
    """Lists of tensors that fit a file each."""
    shard, taken = [], 0
    for name, shape in tensors(config):
        taken_here = math.prod(shape) * size
        if shard and taken + taken_here > FILE_BYTES:
            yield shard
            shard, taken = [], 0
        shard.append((name, shape))
        taken += taken_here
    yield shard


def write_shard(path, shard, dtype, rng):
    name_of_type, _, size = TYPES[dtype]
    header, at = {}, 0
    for name, shape in shard:
        end = at + math.prod(shape) * size
        header[name] = {"dtype": name_of_type, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, shape in shard:
            values = np.ones(shape, np.float32) if len(shape) == 1 else matrix(rng, *shape)
            out.write(stored(values, dtype))
    return at


def write_tokens(path, vocab, count, rng):
    weights = 1 / (1 + np.arange(vocab))
    ids = rng.choice(vocab, size=count, p=weights / weights.sum())
    ids.astype("<u4").tofile(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--dtype", choices=sorted(TYPES), default="bf16")
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
              "torch_dtype": TYPES[options.dtype][1], **SHAPES[options.shape]}
    if options.layers:
        config["num_hidden_layers"] = options.layers
    options.out.mkdir(parents=True)
    (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rng = np.random.default_rng(options.seed)
    write_tokens(options.out / "tokens.u32", config["vocab_size"], options.tokens, rng)
    parts = list(shards(config, TYPES[options.dtype][2]))
    places, total = {}, 0
    for i, shard in enumerate(parts):
        name = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        if len(parts) == 1:
            name = "model.safetensors"
        total += write_shard(options.out / name, shard, options.dtype, rng)
        places.update({tensor: name for tensor, _ in shard})
        print(f"{name}: {len(shard)} tensors", flush=True)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (options.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    main()
