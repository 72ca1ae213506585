#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the command choices with lm-evaluation-harness on local tasks: test_choices.py PROGRAM.
Exit status 77: lm_eval or what it needs is missing, nothing was compared."""
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

root = pathlib.Path(__file__).resolve().parents[2]
scratch = tempfile.TemporaryDirectory()
folder = pathlib.Path(scratch.name)
program = ""

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["LMEVAL_LOG_LEVEL"] = "ERROR"
os.environ["HF_HOME"] = str(folder / "cache")
sys.dont_write_bytecode = True
sys.path.insert(0, str(root / "examples/hf"))
try:
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import export_tasks
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

WORDS = ("the last layers keep rank of a matrix what it loses is measured on text and caf\u00e9 "
         "\u65e5\u672c 12 2026 isn't we'll :: (x) ;").split()
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: {text}
doc_to_target: {target}
doc_to_choice: {choice}
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""
METRICS = {"plain": ["acc", "acc_norm", "acc_bytes"], "partial": ["acc"]}


def sentence(draw, most):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, most)))


def make_items():
    """plain: a question, some of them empty, too long or ending in white space, and its answers;
    partial: an answer in each context."""
    draw = random.Random(7)
    items = []
    for number in range(60):
        context = sentence(draw, 60 if number % 7 == 0 else 12)
        context = {3: "", 5: context + "  ", 9: context + "\n"}.get(number % 11, context + "\nAnswer:")
        items.append({"task": "plain", "id": number, "context": context,
                      "choices": [sentence(draw, 6) for _ in range(draw.choice([2, 4]))],
                      "answer": draw.randrange(2)})
    for number in range(40):
        items.append({"task": "partial", "id": number,
                      "contexts": [sentence(draw, 8) for _ in range(2)],
                      "choices": [sentence(draw, 8)] * 2, "answer": draw.randrange(2)})
    return items


def make_model(tokenizer):
    """A small random model with a tokenizer of the fixtures."""
    model = folder / tokenizer
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=420, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=96, bos_token_id=401,
                         eos_token_id=402)
    network = LlamaForCausalLM(config)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(model)
    file = root / f"tests/llm/fixtures/tokenizers/{tokenizer}.json"
    shutil.copy(file, model / "tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_file=str(file))
    content = json.loads(file.read_text())
    names = {token["content"] for token in content["added_tokens"]}
    fast.bos_token = "<s>" if "<s>" in names else "<|special|>"
    fast.eos_token = "</s>" if "</s>" in names else "<|special|>"
    pathlib.Path(model / "config.json").write_text(json.dumps(
        {**json.loads((model / "config.json").read_text()),
         "bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}))
    return model, network.float().eval(), fast


def harness_results(network, tokenizer, items):
    for name in METRICS:
        documents = [item for item in items if item["task"] == name]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    fields = {
        "plain": {"text": "context", "target": "answer", "choice": "choices"},
        "partial": {"text": "answer", "target": "'{{choices[0]}}'", "choice": "contexts"},
    }
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    for name, names in fields.items():
        (tasks / f"{name}.yaml").write_text(
            TASK.format(name=name, file=folder / f"{name}.jsonl", **names))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(HFLM(network, tokenizer=tokenizer, batch_size=4), tasks=list(fields),
                           task_manager=manager, bootstrap_iters=100, log_samples=True)


class Harness(unittest.TestCase):
    def test_every_item_agrees(self):
        items = make_items()
        (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        for tokenizer in ("gpt2", "llama3"):
            with self.subTest(tokenizer):
                model, network, fast = make_model(tokenizer)
                theirs = harness_results(network, fast, items)
                report = folder / "report.json"
                done = subprocess.run([program, "choices", model, "--tasks", folder / "items.jsonl",
                                       "--json", report, "--threads", "1"],
                                      capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                ours = json.loads(report.read_text())
                self.compare_items(ours, theirs)
                self.compare_tasks(ours, theirs)

    def compare_items(self, ours, theirs):
        compared = 0
        for item in ours["items"]:
            sample = next(s for s in theirs["samples"][item["task"]]
                          if s["doc"]["id"] == int(item["id"]))
            sums = [float(response[0][0]) for response in sample["resps"]]
            self.assertEqual(len(sums), len(item["log_probabilities"]))
            for mine, other in zip(item["log_probabilities"], sums):
                self.assertAlmostEqual(mine, other, delta=2e-4 * max(1, abs(other)))
            compared += 1
        self.assertEqual(compared, 100)

    def compare_tasks(self, ours, theirs):
        for task in ours["tasks"]:
            results = theirs["results"][task["task"]]
            for metric in METRICS[task["task"]]:
                self.assertEqual(task[metric], results[f"{metric},none"])
                self.assertAlmostEqual(task[f"{metric}_stderr"], results[f"{metric}_stderr,none"])


class Export(unittest.TestCase):
    def test_items_of_documents(self):
        def only(task, document):
            (item,) = export_tasks.items_of(task, [document])
            self.assertEqual((item["task"], item["id"]), (task, 0))
            return item

        labels = {"text": ["one", "two"], "label": ["A", "B"]}
        item = only("openbookqa", {"question_stem": "Which", "choices": labels, "answerKey": "B"})
        self.assertEqual((item["context"], item["answer"]), ("Which", 1))
        item = only("arc_easy", {"question": "Which?", "choices": labels, "answerKey": "A"})
        self.assertEqual((item["context"], item["answer"]), ("Question: Which?\nAnswer:", 0))
        item = only("winogrande", {"sentence": "So _ is it.", "option1": "x", "option2": "y",
                                   "answer": "2"})
        self.assertEqual(item["contexts"], ["So x", "So y"])
        self.assertEqual((item["choices"], item["answer"]), (["is it."] * 2, 1))
        item = only("hellaswag", {"activity_label": "Baking", "ctx_a": "A [title] b [step] c.",
                                  "ctx_b": "she", "endings": ["[x] one", "two"], "label": "1"})
        self.assertEqual(item["context"], "Baking: A. b c. She")
        self.assertEqual((item["choices"], item["answer"]), ([" one", "two"], 1))
        item = only("piqa", {"goal": "Do", "sol1": "a", "sol2": "b", "label": 1})
        self.assertEqual((item["context"], item["answer"]), ("Question: Do\nAnswer:", 1))
        item = only("mathqa", {"Problem": "1 + 1", "correct": "e",
                               "options": "a ) 1 , b ) 2,5 , c ) 3 , d ) 4 , e ) none"})
        self.assertEqual((item["choices"], item["answer"]), (["1", "2,5", "3", "4", "none"], 4))


if __name__ == "__main__":
    program = sys.argv.pop(1)
    unittest.main()
