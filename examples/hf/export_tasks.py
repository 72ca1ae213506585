#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes multiple-choice tasks for `ressvd-llm choices MODEL --tasks FILE`.

    pip install datasets
    python export_tasks.py FILE.jsonl [--tasks TASK ...] [--limit N]

The tasks, splits and texts are those of lm-evaluation-harness 0.4 without examples. WinoGrande is
scored partially there: the answers stand in the context, and the rest of the sentence is the
continuation of each.
"""
import argparse
import json
import re


def openbookqa(doc):
    choices = doc["choices"]
    return {"context": doc["question_stem"], "choices": choices["text"],
            "answer": choices["label"].index(doc["answerKey"].lstrip())}


def arc(doc):
    choices = doc["choices"]
    return {"context": f"Question: {doc['question']}\nAnswer:", "choices": choices["text"],
            "answer": choices["label"].index(doc["answerKey"])}


def winogrande(doc):
    before, behind = doc["sentence"].split("_", 1)
    return {"contexts": [before + doc["option1"], before + doc["option2"]],
            "choices": [behind.strip()] * 2, "answer": {"1": 0, "2": 1}[doc["answer"]]}


def without_brackets(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(doc):
    context = f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}"
    return {"context": without_brackets(context),
            "choices": [without_brackets(ending) for ending in doc["endings"]],
            "answer": int(doc["label"])}


def piqa(doc):
    return {"context": f"Question: {doc['goal']}\nAnswer:", "choices": [doc["sol1"], doc["sol2"]],
            "answer": doc["label"]}


def mathqa(doc):
    choices = re.findall(r"[abcd] \) .*?, |e \) .*?$", doc["options"])
    return {"context": f"Question: {doc['Problem']}\nAnswer:",
            "choices": [choice[4:].rstrip(" ,") for choice in choices],
            "answer": "abcde".index(doc["correct"])}


# Name: data set, its part, split, and what makes an item of a document.
TASKS = {
    "openbookqa": ("allenai/openbookqa", "main", "test", openbookqa),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test", arc),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test", arc),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation", winogrande),
    "hellaswag": ("Rowan/hellaswag", None, "validation", hellaswag),
    "piqa": ("baber/piqa", None, "validation", piqa),
    "mathqa": ("regisss/math_qa", None, "test", mathqa),
}


def items_of(task, documents):
    make = TASKS[task][-1]
    return [{"task": task, "id": number, **make(doc)} for number, doc in enumerate(documents)]


def main():
    from datasets import load_dataset

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--limit", type=int, help="only the first so many items of each task")
    args = parser.parse_args()
    with open(args.file, "w", encoding="utf-8") as out:
        for task in args.tasks:
            path, part, split, _ = TASKS[task]
            documents = load_dataset(path, part, split=split)
            if args.limit is not None:
                documents = documents.select(range(min(args.limit, len(documents))))
            items = items_of(task, documents)
            for item in items:
                out.write(json.dumps(item, ensure_ascii=False) + "\n")
            print(f"{task}: {len(items)} items")


if __name__ == "__main__":
    main()
