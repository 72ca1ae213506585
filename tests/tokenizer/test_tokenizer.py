#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares the program's tokenizer.json with the package tokenizers: test_tokenizer.py ENCODE, where
ENCODE is tests/tokenizer/encode.cpp. Exit status 77: the package is missing."""
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata
import unittest

try:
    from tokenizers import AddedToken, Regex, Tokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers
except ImportError:
    print("skipped: the Python package tokenizers is missing")
    sys.exit(77)

fixtures = pathlib.Path(__file__).resolve().parents[1] / "llm/fixtures/tokenizers"
encode_program = ""
scratch = tempfile.TemporaryDirectory()
mark = "\u2581"

# Characters that every version of Unicode at hand knows: those of 3.2, and later emoji and joiners.
old = unicodedata.ucd_3_2_0
assigned = [chr(c) for c in range(0x110000) if old.category(chr(c)) not in ("Cn", "Cs", "Co")]
emoji = [chr(c) for c in range(0x1F600, 0x1F640)] + ["\u200d", "\ufe0f", "\U0001f1e9"]
alphabets = [
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ ",
    "etaoin shrdlu the of and  ",
    "'s't're've'm'll'd'S'T'RE\u017f\u2019 ",
    "0123456789 \u0663\u00bd\u2167",
    " \t\n\r\v\f\u0085\u00a0\u2003\u2028\u3000\u180e\u200b",
    "(){}[]<>!?.,;:-_=+*&^%$#@|/\\\"'`~",
    "e\u0301\u0300\u0327\u0316a\u030a\u1e9b\u0323\uac00\u1100\u1161\u11a8\ufb01\u212b",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u4e2d\u6587\uff0c\u3002",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u0915\u094d\u0937\u093f",
    emoji,
    [mark, " ", "<", "s", ">", "<s>", "<|special|>", "<unk>", "[MASK]", "word", "mid"],
    assigned,
]


def random_text(draw, most=60):
    text = ""
    for _ in range(draw.randrange(4)):
        alphabet = draw.choice(alphabets)
        text += "".join(draw.choice(alphabet) for _ in range(draw.randrange(most // 3)))
    return text


def run(content, lines):
    """What the program makes of each line, a text or ids; its message where it refuses the file."""
    file = pathlib.Path(scratch.name) / "tokenizer.json"
    file.write_text(json.dumps(content))
    done = subprocess.run([encode_program, str(file)], input="".join(f"{json.dumps(x)}\n" for x in lines),
                          capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        return done.stderr
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def bytes_and(*tokens):
    """A vocabulary of bytes, and of these tokens."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary


class package(unittest.TestCase):
    def compare(self, tokenizer, texts, decoded=True):
        content = json.loads(tokenizer.to_str())
        results = run(content, texts)
        self.assertIsInstance(results, list, (results, content))
        self.assertEqual(len(results), len(texts))
        for text, result in zip(texts, results):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            self.assertEqual(result["ids"], ids, (text, content))
            if decoded:
                self.assertEqual(result["text"], tokenizer.decode(ids), (text, content))

    def test_fixtures(self):
        draw = random.Random(1)
        names = sorted(set(fixtures.glob("*.json")) - {fixtures / "expected.json", fixtures / "pieces.json"})
        self.assertGreaterEqual(len(names), 9)
        for file in names:
            tokenizer = Tokenizer.from_file(str(file))
            self.compare(tokenizer, [random_text(draw) for _ in range(300)] + [random_text(draw, 6000)])

    def test_any_ids_are_decoded(self):
        draw = random.Random(2)
        for name in ("gpt2", "llama2", "metaspace"):
            tokenizer = Tokenizer.from_file(str(fixtures / f"{name}.json"))
            lists = [[draw.randrange(tokenizer.get_vocab_size()) for _ in range(draw.randrange(1, 12))]
                     for _ in range(300)]
            # The package panics where it has to strip a token of nothing but spaces.
            for ids, result in zip(lists, run(json.loads(tokenizer.to_str()), lists)):
                self.assertEqual(result["text"], tokenizer.decode(ids), (name, ids))

    def test_expressions(self):
        """A mark before each piece shows where pieces begin."""
        draw = random.Random(3)
        expressions = [
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
            r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", r"\w+|[^\w\s]+", r"\W", r"\s", r"\S+",
            r"[\S\n]+", r"[^\S ]", r"[\s\d]+", r"\d{1,3}(?=(?:\d{3})*\b)", r"\D+", r"\h+", r"\H",
            r"[\h\-x]", r"\b", r"\B", r"^.", r"^", r"$", r".$", r".+", r"\A.", r".\z", r"\R",
            r"\p{Han}+", r"\p{Hiragana}|\p{Cyrillic}", r"\p{^Lu}+", r"\P{L}",
            r"x*", r"a|", r" ?", r"", r"(?<=a)b", r"(?<!a)b", r"(a+)(b)?", r"(?>a+)b", r"a++", r"a+?b",
            r".*?e", r"(?:ab|a)(?=b)", r"\x20|\x{41}|\u0042", r"[\x20-\x40]", r"\v", r"[\b\t]",
            r"\.|\\|\-|\ ", r"e{2}|t{1,}", "\u00e9|[\u65e5\u672c]", r"(?i:K|s)",
        ]
        vocabulary = bytes_and(mark)
        for expression in expressions:
            behaviors = ["isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"]
            for behavior in draw.sample(behaviors, 2):
                tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
                tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                    pre_tokenizers.Split(Regex(expression), behavior, invert=draw.random() < 0.5),
                    pre_tokenizers.Metaspace(prepend_scheme="always", split=False)])
                texts = [random_text(draw) for _ in range(60)]
                texts += ["".join(draw.choice("ab'sK \n1") for _ in range(draw.randrange(20)))
                          for _ in range(30)]
                self.compare(tokenizer, texts, decoded=False)

    def test_classes_have_the_same_members(self):
        # Thousands of ideographs and Hangul are alike.
        alike = [c for i, c in enumerate(assigned)
                 if i % 40 == 0 or c < "\u3400" or "\ud7a3" < c < "\U00020000"]
        for expression in (r"\w", r"\s", r"\d", r"\h", r"\p{L}", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{M}",
                           r"\p{Z}", r"\p{C}", r"\p{Lu}", r"\p{Han}", r"\p{Latin}", r"[\S]", r"[\w]",
                           r"[^\w]", r"\W", r"(?i:k)"):
            tokenizer = Tokenizer(models.BPE(bytes_and(mark), [], byte_fallback=True))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Split(Regex(expression), "contiguous"),
                pre_tokenizers.Metaspace(prepend_scheme="always", split=False)])
            self.compare(tokenizer, ["\0".join(alike)], decoded=False)

    def test_other_cuts(self):
        draw = random.Random(4)
        cuts = [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Split("ab", "isolated"), pre_tokenizers.Split(" ", "merged_with_previous"),
                pre_tokenizers.ByteLevel(add_prefix_space=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Metaspace("_", "always"), pre_tokenizers.Metaspace("_", "never", False)]
        for first in cuts:
            for second in draw.sample(cuts, 4):
                tokenizer = Tokenizer(models.BPE(bytes_and(mark), [], byte_fallback=True))
                tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                    first, second, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)])
                self.compare(tokenizer, [random_text(draw) for _ in range(60)], decoded=False)

    def test_normal_forms(self):
        draw = random.Random(5)
        for form in (normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(),
                     normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+|e*"), "+"),
                     normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend("> "),
                                           normalizers.Replace("a", "")])):
            tokenizer = Tokenizer(models.BPE(bytes_and(), [], byte_fallback=True))
            tokenizer.normalizer = form
            self.compare(tokenizer, [random_text(draw, 120) for _ in range(400)], decoded=False)

    def test_added_tokens(self):
        draw = random.Random(6)
        for _ in range(60):
            tokenizer = Tokenizer(models.BPE(bytes_and("a"), [], byte_fallback=True))
            tokenizer.normalizer = draw.choice([None, normalizers.Lowercase(), normalizers.NFC(),
                                                normalizers.Prepend(mark)])
            tokenizer.pre_tokenizer = draw.choice([None] * 2 + [pre_tokenizers.Digits()])
            contents = ["a", "ab", "aba", "b", "bb ", " b", "  ", "A", "<a>", "\u00e9", "e\u0301", "1", "\n"]
            for content in draw.sample(contents, draw.randrange(1, 6)):
                flags = {flag: draw.random() < 0.4
                         for flag in ("lstrip", "rstrip", "single_word", "normalized")}
                # The package panics where another token took such a one along.
                flags["lstrip"] = flags["lstrip"] and not content.isspace()
                token = AddedToken(content, **flags)
                if draw.random() < 0.5:
                    tokenizer.add_special_tokens([token])
                else:
                    tokenizer.add_tokens([token])
            texts = ["".join(draw.choice(["a", "b", " ", "A", "<a>", "e\u0301", "\u00e9", "1", "\n", "_",
                                          "\u200d", "-"]) for _ in range(draw.randrange(16)))
                     for _ in range(80)]
            self.compare(tokenizer, texts, decoded=tokenizer.normalizer is None)

    def test_merges(self):
        """Merges in any order, several that make one token, and characters without a token."""
        draw = random.Random(7)
        for _ in range(60):
            options = {"byte_fallback": draw.random() < 0.5, "fuse_unk": draw.random() < 0.5,
                       "ignore_merges": draw.random() < 0.3}
            letters = "abc" + mark
            vocabulary = dict(bytes_and(*letters, "<unk>"))
            for missing in draw.sample(sorted(vocabulary), draw.choice([0, 0, 150])):
                if missing.startswith("<0x"):
                    del vocabulary[missing]
            tokens = list(letters)
            merges = []
            for _ in range(draw.randrange(25)):
                pair = (draw.choice(tokens), draw.choice(tokens))
                if draw.random() < 0.6 and (pair[1].startswith(mark) and not pair[0].endswith(mark)):
                    continue
                if pair in merges:
                    continue
                merges.append(pair)
                tokens.append("".join(pair))
            for token in tokens:
                vocabulary.setdefault(token, 1000 + len(vocabulary))
            if draw.random() < 0.7:
                options["unk_token"] = "<unk>"
            tokenizer = Tokenizer(models.BPE(vocabulary, merges, **options))
            texts = ["".join(draw.choice(letters + "\u00e9x") for _ in range(draw.randrange(40)))
                     for _ in range(80)]
            self.compare(tokenizer, texts + ["ab" * 3000, mark * 3000 + "a" * 3000], decoded=False)


if __name__ == "__main__":
    encode_program = sys.argv.pop(1)
    unittest.main()
