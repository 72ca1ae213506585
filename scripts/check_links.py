#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that every relative link of the Markdown pages leads to a file, and to a heading in it.

    python3 scripts/check_links.py
"""
import functools
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")


@functools.cache
def text_of(page):
    """The page without its blocks and spans of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", lambda span: "" if "](" in span[0] else span[0], text)


@functools.cache
def anchors(page):
    """The names that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
            for heading in headings}


def problems(page):
    for link in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"{link}: no such heading"


def main():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
                            cwd=ROOT, check=True, capture_output=True, text=True)
    pages = [ROOT / name for name in sorted(set(listed.stdout.splitlines()))]
    found = [f"{page.relative_to(ROOT)}: {problem}"
             for page in pages if page.exists() for problem in problems(page)]
    print("\n".join(found) or f"{len(pages)} pages: every link leads somewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
