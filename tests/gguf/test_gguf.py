#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""GGUF files that the program writes, read by the package gguf: test_gguf.py PROGRAM. Exit status
77: the package or one that it needs is missing, nothing was tested."""
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

try:
    import gguf
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

root = pathlib.Path(__file__).resolve().parents[2]
fixtures = root / "tests/llm/fixtures"
program = ""
scratch = tempfile.TemporaryDirectory()
folder = pathlib.Path(scratch.name)


def compress(model, name, *options):
    output = folder / name
    done = subprocess.run(
        [str(c) for c in (program, "compress", model, output, "--method", "svd-llm",
                          "--allocation", "uniform", "--ratio", 0.4, "--samples", 8, "--seqlen", 16,
                          "--heldout-samples", 2, "--threads", 1, *options)],
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return output


def model_of(family):
    """The fixture; Gemma's with the scale of scores that llama.cpp takes for it."""
    config = json.loads((fixtures / family / "config.json").read_text())
    if "query_pre_attn_scalar" not in config:
        return fixtures / family
    copy = folder / f"usual-{family}"
    shutil.copytree(fixtures / family, copy, dirs_exist_ok=True)
    config["query_pre_attn_scalar"] = config["head_dim"]
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def tensors_of(file):
    """Values by name, rows of the converter's order."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape)))
            for t in gguf.GGUFReader(file).tensors}


def safetensors_of(directory):
    """Values by name, of a file of float32."""
    content = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    values = {}
    for name, entry in json.loads(content[8:8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = content[8 + length + begin:8 + length + end]
        values[name] = np.frombuffer(data, dtype="<f4").reshape(entry["shape"])
    return values


def interleaved(weights, heads):
    """What llama.cpp's converter does to the rows of q and k of Llama."""
    return (weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
            .swapaxes(1, 2).reshape(weights.shape))


class written_files(unittest.TestCase):
    def test_tensors_are_those_of_the_dense_output(self):
        for family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"):
            with self.subTest(family):
                model = model_of(family)
                config = json.loads((model / "config.json").read_text())
                dense = safetensors_of(compress(model, f"{family}-dense", "--format", "dense"))
                file = compress(model, f"{family}.gguf", "--format", "gguf")
                written = tensors_of(file)
                if config["tie_word_embeddings"]:
                    dense.pop("lm_head.weight", None)
                names = gguf.get_tensor_name_map(
                    gguf.MODEL_ARCH.LLAMA if family == "mistral" else
                    gguf.MODEL_ARCH[family.upper()], config["num_hidden_layers"])
                expected = {}
                for name, values in dense.items():
                    for module, heads in (("q_proj", config["num_attention_heads"]),
                                          ("k_proj", config["num_key_value_heads"])):
                        if family in ("llama", "mistral") and f".{module}." in name:
                            values = interleaved(values, heads)
                    if family.startswith("gemma") and name.endswith("norm.weight"):
                        values = values + np.float32(1)
                    expected[names.get_name(name, (".weight", ".bias"))] = values
                self.assertEqual(written.keys(), expected.keys())
                for name, values in expected.items():
                    self.assertTrue(np.array_equal(written[name], values), name)

    def test_metadata_describe_the_model(self):
        config = json.loads((fixtures / "llama" / "config.json").read_text())
        file = compress(fixtures / "llama", "described.gguf", "--format", "gguf", "--dtype", "q8_0")
        fields = {k: f.contents() for k, f in gguf.GGUFReader(file).fields.items()}
        self.assertEqual(fields["GGUF.version"], 3)
        self.assertEqual(fields["general.architecture"], "llama")
        self.assertEqual(fields["general.file_type"], gguf.LlamaFileType.MOSTLY_Q8_0)
        self.assertEqual(fields["tokenizer.ggml.model"], "none")
        for key, name in (("llama.block_count", "num_hidden_layers"),
                          ("llama.embedding_length", "hidden_size"),
                          ("llama.attention.head_count", "num_attention_heads"),
                          ("llama.attention.head_count_kv", "num_key_value_heads"),
                          ("llama.vocab_size", "vocab_size"),
                          ("tokenizer.ggml.bos_token_id", "bos_token_id")):
            self.assertEqual(fields[key], config[name])
        self.assertEqual(json.loads(fields["ressvd.compressed"])["method"], "svd-llm")

    def test_the_same_quantised_values(self):
        exact = tensors_of(compress(fixtures / "llama", "exact.gguf", "--format", "gguf"))
        file = compress(fixtures / "llama", "quantised.gguf", "--format", "gguf", "--dtype", "q8_0")
        kinds = set()
        for tensor in gguf.GGUFReader(file).tensors:
            kinds.add(tensor.tensor_type.name)
            expected = gguf.quantize(exact[tensor.name], tensor.tensor_type)
            self.assertEqual(tensor.data.tobytes(), expected.tobytes(), tensor.name)
        self.assertEqual(kinds, {"F32", "F16", "Q8_0"})

    def test_converted_models(self):
        for family in ("llama", "llama3", "llama_linear", "qwen2", "qwen3", "gemma2", "gemma3"):
            with self.subTest(family):
                output = folder / f"converted-{family}.gguf"
                done = subprocess.run(
                    [program, "convert", model_of(family), output, "--dtype", "f32"],
                    capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                written = tensors_of(output)
                for name, values in tensors_of(fixtures / "gguf" / f"{family}.gguf").items():
                    bound = {"qwen2": 1e-2, "rope_freqs.weight": 1e-6}.get(
                        name if name.startswith("rope") else family, 1e-3)
                    error = np.linalg.norm(written[name] - values) / np.linalg.norm(values)
                    self.assertLess(error, bound, name)
                # What is said of the model is what the converter says.
                said = gguf.GGUFReader(output).fields
                reader = gguf.GGUFReader(fixtures / "gguf" / f"{family}.gguf")
                architecture = reader.fields["general.architecture"].contents()
                for key, field in reader.fields.items():
                    if key.startswith(architecture):
                        self.assertEqual(said[key].contents(), field.contents(), key)

    def test_pairs_and_tokenizer_of_a_gguf_file_stay(self):
        source = fixtures / "gguf" / "llama.gguf"
        before = gguf.GGUFReader(source)
        after = gguf.GGUFReader(compress(source, "again.gguf", "--format", "gguf"))
        for name, field in before.fields.items():
            if name.startswith("GGUF."):
                continue
            self.assertEqual(field.contents(), after.fields[name].contents(), name)
        self.assertEqual([t.name for t in after.tensors if t.tensor_type.name == "F16"],
                         [t.name for t in after.tensors if len(t.shape) > 1])


if __name__ == "__main__":
    program = sys.argv.pop(1)
    unittest.main(verbosity=2)
