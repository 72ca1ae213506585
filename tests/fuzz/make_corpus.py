#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzz targets to corpus/, from the fixtures of the tests and by hand.

Seeds named found_... are inputs that once crashed; they are kept as they were found."""
import json
import pathlib
import struct

here = pathlib.Path(__file__).resolve().parent
fixtures = here.parent / "llm" / "fixtures"


def write(target, name, content):
    directory = here / "corpus" / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)


def safetensors(header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def npy(descr, shape, data, version=1):
    start = 10 if version == 1 else 12
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(start + len(header) + 1) % 64) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


write("safetensors", "two", safetensors(
    {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 1], 0, 8),
     "b": tensor("BF16", [3], 8, 14)}, bytes(range(14))))
write("safetensors", "kinds", safetensors(
    {"f64": tensor("F64", [1], 0, 8), "f16": tensor("F16", [], 8, 10),
     "f4": tensor("F4", [4], 10, 12), "empty": tensor("I64", [0, 5], 12, 12),
     "ids": tensor("U8", [1, 1], 12, 13)}, bytes(13)))
write("safetensors", "nothing", safetensors({}, b""))
write("safetensors", "overflow", safetensors({"a": tensor("F64", [2**32, 2**32], 0, 0)}, b""))
write("safetensors", "overlap", safetensors(
    {"a": tensor("U8", [8], 0, 8), "b": tensor("U8", [4], 4, 8)}, bytes(8)))
write("safetensors", "long_header", struct.pack("<Q", 2**63) + b"{}")


def gguf(pairs, tensors, data=b"", version=3):
    """Pairs are (key, kind, bytes of the value); tensors (name, extents, type, offset)."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, kind, value in pairs:
        content += text(key) + struct.pack("<I", kind) + (text(value) if kind == 8 else value)
    for name, extents, kind, offset in tensors:
        content += text(name) + struct.pack("<I", len(extents))
        content += struct.pack(f"<{len(extents)}Q", *extents) + struct.pack("<IQ", kind, offset)
    return content + b"\0" * (-len(content) % 32) + data


def u32(number):
    return struct.pack("<I", number)


llama = [("general.architecture", 8, "llama"), ("llama.block_count", 4, u32(1)),
         ("llama.context_length", 4, u32(8)), ("llama.embedding_length", 4, u32(4)),
         ("llama.feed_forward_length", 4, u32(4)), ("llama.attention.head_count", 4, u32(1)),
         ("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))]
one = ("token_embd.weight", [4, 2], 0, 0)
write("gguf", "llama", gguf(llama, [one], bytes(32)))
write("gguf", "factors", gguf(llama, [one, ("rope_freqs.weight", [2], 0, 32)],
                              bytes(32) + struct.pack("<2f", 1, 8)))
write("gguf", "linear", gguf(
    llama + [("llama.rope.scaling.type", 8, "linear"),
             ("llama.rope.scaling.factor", 6, struct.pack("<f", 4))], [one], bytes(32)))
write("gguf", "tokenizer", gguf(
    [("tokenizer.ggml.model", 8, "gpt2"),
     ("tokenizer.ggml.tokens", 9, struct.pack("<IQQ", 8, 2, 1) + b"a" + struct.pack("<Q", 0)),
     ("tokenizer.ggml.scores", 9, struct.pack("<IQff", 6, 2, 0, 1)),
     ("tokenizer.ggml.token_type", 9, struct.pack("<IQii", 5, 2, 1, 3)),
     ("tokenizer.ggml.merges", 9, struct.pack("<IQQ", 8, 1, 3) + b"a a"),
     ("tokenizer.ggml.bos_token_id", 4, u32(1)), ("tokenizer.ggml.add_bos_token", 7, b"\1")], []))
for kind, size in ((2, 18), (3, 20), (6, 22), (7, 24), (8, 34), (10, 84), (11, 110), (12, 144),
                   (13, 176), (14, 210)):
    write("gguf", f"blocks_{kind}", gguf(
        [], [("a", [256 if size > 40 else 32, 2], kind, 0)], bytes(range(size)) * 2, 2))
write("gguf", "overlap", gguf([], [("a", [16], 0, 0), ("b", [8], 0, 32)], bytes(64)))
write("gguf", "overflow", gguf([], [("a", [2**32, 2**32], 0, 0)]))
write("gguf", "counts", b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63))
write("gguf", "alignment", gguf([("general.alignment", 4, u32(64))], [("a", [1], 1, 0)], bytes(34)))

for family in ("llama", "llama3", "llama_linear", "mistral", "opt", "qwen2", "qwen3"):
    config = json.loads((fixtures / family / "config.json").read_text())
    write("config", family, json.dumps(config, separators=(",", ":")).encode())
config["ressvd"] = {"version": 1, "method": "ressvd", "format": "factored", "ratio": 0.2,
                    "ranks": {"model.layers.0.self_attn.q_proj": 3}}
config["tokenizer"] = "bytes"
config["vocab_size"] = 256
write("config", "compressed", json.dumps(config, separators=(",", ":")).encode())
qwen2 = json.loads((fixtures / "qwen2" / "config.json").read_text())
qwen2.pop("layer_types", None)
qwen2.update(use_sliding_window=True, max_window_layers=0, sliding_window=8)
write("config", "windows", json.dumps(qwen2, separators=(",", ":")).encode())

for name, shard in (("inside", "a.safetensors"), ("parent", "../outside"), ("link", "link"),
                    ("leaving", "leaving"), ("directory", "directory"), ("absolute", "/outside"),
                    ("null", "a\0b")):
    write("index", name, json.dumps(
        {"metadata": {"total_size": 8}, "weight_map": {"t": shard, "u": "a.safetensors"}}).encode())

# The last byte: the kind of file, and the vocabulary.
write("tokens", "npy_u2", npy("<u2", "(2, 2)", bytes(8)) + b"\0")
write("tokens", "npy_i8", npy("<i8", "(1,)", struct.pack("<q", -1), 2) + b"\x0c")
write("tokens", "npy_u1", npy("|u1", "()", b"\1", 3) + b"\0")
write("tokens", "npy_overflow", npy("<i4", "(4611686018427387904, 4)", b"") + b"\0")
write("tokens", "u16", struct.pack("<3H", 0, 255, 7) + b"\1")
write("tokens", "u32", struct.pack("<2I", 1, 70000) + b"\x0e")

# A tokenizer.json and a text, with a zero byte between them. The vocabularies are cut to what fits.
texts = {"gpt2": "it's  12\n", "llama2": " caf\u00e9 <s>"}
for file in sorted((fixtures / "tokenizers").glob("*.json")):
    if file.stem in ("expected", "pieces"):
        continue
    content = json.loads(file.read_text())
    small = {"a": 0, "b": 1, "\u0120": 2, "\u2581": 3, "ab": 4, "<0x41>": 5, "<unk>": 6}
    content["model"].update(vocab=small, merges=["a b"])
    content["added_tokens"] = [
        {**token, "id": small.get(token["content"], len(small))}
        for token in content["added_tokens"]
        if token["content"] not in ("<s>", "</s>")][:1]
    if "TemplateProcessing" in json.dumps(content["post_processor"]):
        content["post_processor"] = None
    text = json.dumps(content, separators=(",", ":")) + "\0" + texts.get(file.stem, "ab 1 b")
    write("tokenizer", file.stem, text.encode())

# An entry point, then the numbers it asks for; see input.hpp. Sizes are bytes below 13.
view = bytes([1, 4, 5])       # row-major, 4 x 5, packed
square = bytes([0, 5, 5])     # column-major, 5 x 5
values = bytes([16, 3, 240, 9, 250, 1, 7, 30, 2, 11, 200, 5, 13, 90, 4, 8, 25, 6, 33, 12])
grams = bytes(16 * (i % 6 == 0) for i in range(25))
write("matrix_view", "gram", bytes([0, 1]) + view + values + view + values + bytes([5]))
write("matrix_view", "cross_gram", bytes([1, 3]) + view + values + view + values + bytes([5, 5]))
write("matrix_view", "state", bytes([2, 2, 3, 1, 4, 2, 2]))
write("matrix_view", "qr", bytes([3, 1]) + view + values + bytes([5]))
write("matrix_view", "whiten", bytes([4]) + square + grams + bytes([1, 10, 20, 0]))
write("matrix_view", "whiten_power", bytes([4]) + square + grams + bytes([0, 60]))
for algorithm in range(4):
    write("matrix_view", f"factor_{algorithm}",
          bytes([5]) + view + values + view + values + bytes([0, 4, 1]) + values[:4] + square
          + grams + bytes([3 if algorithm else 0, 2, 2, algorithm, 20, 1, 2, 1]))
write("matrix_view", "apply", bytes([6, 1, 4, 2]) + values[:8] + bytes([1, 2, 5]) + values[:10]
      + bytes([0, 5, 3]) + values[:15] + bytes([1, 4, 3]) + bytes(12) + bytes([0, 4, 1])
      + bytes(4) + bytes([1]))
write("matrix_view", "ressvd", bytes([7]) + view + values + square + grams + view + bytes(20)
      + bytes([9, 3, 6, 1]))
write("matrix_view", "ressvd_ratio", bytes([7]) + view + values + square + grams + view
      + bytes(20) + bytes([34, 40, 6]))
for fit in range(5):
    write("matrix_view", f"refit_{fit}", bytes([8]) + view + values + square + grams + square
          + grams + bytes([fit, 3, 4, 1, 3]))
write("matrix_view", "ranks", bytes([9, 9, 12, 50, 1, 0, 3, 4, 5, 6, 30, 1, 2]))
