#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of examples/hf/export_tasks.py on documents like those of the data sets, without them."""
import contextlib
import io
import json
import pathlib
import sys
import tempfile
import types
import unittest
from unittest import mock

root = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(root / "examples/hf"))
import export_tasks

LETTERS = ["A", "B", "C", "D"]

# Rows in the schema of each data set, and the text of the right answer.
DOCUMENTS = {
    "openbookqa": [
        ({"id": "7-1", "question_stem": "A magnet attracts", "answerKey": "C",
          "choices": {"text": ["wood", "glass", "an iron nail", "paper"], "label": LETTERS}},
         "an iron nail"),
        ({"id": "7-2", "question_stem": "Rain is", "answerKey": " B",
          "choices": {"text": ["dry", "wet", "loud", "caf\u00e9"], "label": LETTERS}}, "wet")],
    "arc_easy": [
        ({"id": "M_1", "question": "Which is a mammal?", "answerKey": "2",
          "choices": {"text": ["a trout", "a whale", "a crow", "a bee"],
                      "label": ["1", "2", "3", "4"]}}, "a whale")],
    "arc_challenge": [
        ({"id": "M_2", "question": "What melts first?", "answerKey": "A",
          "choices": {"text": ["ice", "iron", "rock"], "label": LETTERS[:3]}}, "ice")],
    "winogrande": [
        ({"sentence": "The cup fell off the shelf because the _ was wobbly.", "option1": "cup",
          "option2": "shelf", "answer": "2"}, "was wobbly.")],
    "hellaswag": [
        ({"ind": 4, "activity_label": "Baking [step] bread", "ctx_a": "A man [title] kneads.",
          "ctx_b": "then he", "ctx": "A man kneads. then he", "source_id": "wikihow~1",
          "split": "val", "split_type": "indomain", "label": "3",
          "endings": ["sleeps.", "sings  loudly.", "runs.", "waits [substeps] an hour."]},
         "waits an hour.")],
    "piqa": [
        ({"goal": "To open a jar,", "sol1": "twist its lid.", "sol2": "shout at it.", "label": 0},
         "twist its lid.")],
    "mathqa": [
        ({"Problem": "what is 2 + 3 , doubled ?", "Rationale": "none", "correct": "d",
          "options": "a ) 1 , 000 , b ) 6 , c ) rs . 8 , d ) 10 , e ) none of these",
          "annotated_formula": "add(2,3)", "linear_formula": "add(n0,n1)|", "category": "general"},
         "10")],
}


class rows(list):
    """As much of a data set as is used."""

    def select(self, numbers):
        return rows(self[number] for number in numbers)


def exported(*options):
    """The items that the program writes, and what it was asked to load."""
    loaded = []

    def load_dataset(path, part, split):
        loaded.append((path, part, split))
        task = next(name for name, known in export_tasks.TASKS.items()
                    if known[:3] == (path, part, split))
        return rows(document for document, _ in DOCUMENTS[task])

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "tasks.jsonl"
        with mock.patch.dict(sys.modules,
                             datasets=types.SimpleNamespace(load_dataset=load_dataset)), \
             mock.patch.object(sys, "argv", ["export_tasks.py", str(file), *options]), \
             contextlib.redirect_stdout(io.StringIO()):
            export_tasks.main()
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()], loaded


class ExportTest(unittest.TestCase):
    def test_every_task_keeps_its_answer(self):
        items, loaded = exported()
        self.assertEqual(sorted(DOCUMENTS), sorted(export_tasks.TASKS))
        self.assertEqual(loaded, [known[:3] for known in export_tasks.TASKS.values()])
        self.assertEqual(len(items), sum(map(len, DOCUMENTS.values())))
        for item in items:
            with self.subTest(item["task"], id=item["id"]):
                _, right = DOCUMENTS[item["task"]][item["id"]]
                self.assertEqual(item["choices"][item["answer"]], right)
                self.assertTrue(all(choice == choice.strip() != "" for choice in item["choices"]))
                # One context, or one of each choice.
                self.assertNotEqual("context" in item, "contexts" in item)
                self.assertEqual(len(item.get("contexts", item["choices"])), len(item["choices"]))

    def item(self, task):
        return export_tasks.items_of(task, [document for document, _ in DOCUMENTS[task]])[0]

    def test_questions_and_answers_are_marked(self):
        for task in ("arc_easy", "arc_challenge", "piqa", "mathqa"):
            context = self.item(task)["context"]
            self.assertTrue(context.startswith("Question: ") and context.endswith("\nAnswer:"), task)
        self.assertEqual(self.item("openbookqa")["context"], "A magnet attracts")

    def test_the_parts_of_winogrande_make_its_sentences(self):
        item = self.item("winogrande")
        document = DOCUMENTS["winogrande"][0][0]
        for context, choice, option in zip(item["contexts"], item["choices"],
                                           (document["option1"], document["option2"])):
            self.assertEqual(context + " " + choice, document["sentence"].replace("_", option))

    def test_brackets_leave_hellaswag(self):
        item = self.item("hellaswag")
        self.assertEqual(item["context"], "Baking bread: A man. kneads. Then he")
        self.assertEqual(item["choices"][1], "sings loudly.")

    def test_choices_of_mathqa_end_at_a_comma_as_in_the_harness(self):
        self.assertEqual(self.item("mathqa")["choices"],
                         ["1", "6", "rs . 8", "10", "none of these"])

    def test_tasks_and_their_number_can_be_limited(self):
        items, loaded = exported("--tasks", "openbookqa", "piqa", "--limit", "1")
        self.assertEqual([item["task"] for item in items], ["openbookqa", "piqa"])
        self.assertEqual(len(loaded), 2)


if __name__ == "__main__":
    unittest.main()
