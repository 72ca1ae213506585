#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes <ressvd/ressvd.hpp> and all that it includes of this library as one header.

    scripts/amalgamate.py OUTPUT

The result needs Eigen and the standard library. A program includes it or the headers it is made
of, not both.
"""
import pathlib
import re
import sys

INCLUDE = pathlib.Path(__file__).resolve().parent.parent / "include"
START = "ressvd/ressvd.hpp"
GUARD = "RESSVD_SINGLE_HEADER_HPP"

OWN = re.compile(r'#\s*include\s+"(ressvd/[^"]+)"')
FOREIGN = re.compile(r"#\s*include\s+<([^>]+)>")
DROPPED = re.compile(r"// SPDX-License-Identifier:|#pragma once")


class amalgamation:
    def __init__(self):
        self.seen = set()
        self.foreign = set()
        self.texts = []  # in the order in which a compiler would read them

    def add(self, name):
        if name in self.seen:
            return
        self.seen.add(name)
        own = []
        depth = 0  # of #if
        has_code = False
        for number, line in enumerate(self.lines(name), 1):
            if DROPPED.match(line):
                continue
            if re.match(r"#\s*if", line):
                depth += 1
            elif re.match(r"#\s*endif", line):
                depth -= 1
            if re.match(r"#\s*include", line) and not (depth and FOREIGN.match(line)):
                # Everything else depends on where it stands, which would change.
                if depth or has_code:
                    sys.exit(f"{name}:{number}: an #include below code or inside #if")
                self.include(line, f"{name}:{number}")
                continue
            has_code = has_code or not re.match(r"\s*(//.*)?$", line)
            own.append(line)
        if has_code:
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(own)).strip("\n").removeprefix("//\n")
            self.texts.append(f"// {name}\n//\n{text}\n")

    def include(self, line, place):
        if match := OWN.match(line):
            self.add(match[1])
        elif match := FOREIGN.match(line):
            self.foreign.add(match[1])
        else:
            sys.exit(f"{place}: neither \"ressvd/...\" nor <...> is included")

    def lines(self, name):
        return (INCLUDE / name).read_text(encoding="utf-8").splitlines()

    def __str__(self):
        version = re.search(r'RESSVD_VERSION_STRING "(.*)"', "\n".join(self.texts))[1]
        return "\n".join([
            "// SPDX-License-Identifier: Apache-2.0",
            "//",
            f"// ressvd {version} with its CPU backend in one header, made by scripts/amalgamate.py.",
            f"#ifndef {GUARD}",
            f"#define {GUARD}",
            "",
            *(f"#include <{name}>" for name in sorted(self.foreign)),
            "",
            *self.texts,
            f"#endif // {GUARD}",
            ""])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    result = amalgamation()
    result.add(START)
    output = pathlib.Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(str(result), encoding="utf-8")


if __name__ == "__main__":
    main()
