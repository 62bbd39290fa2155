#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rules for every file of the tree that no other checker knows; part of ``make lint``.

* the licence is named in the first lines: BPF programs are dual, the rest is Apache-2.0;
* no source file is longer than 500 lines, unless a machine wrote it or it is a table;
* no text names a folder of somebody's own machine.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 500
SKIPPED_FOLDERS = {
    ".git",
    ".venv",
    ".cache",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
    "LICENSES",
    "results",
}
SOURCES = {".py", ".c", ".h", ".sh", ".proto"}
LICENSED = SOURCES | {".toml"}
LICENSED_NAMES = {"Makefile", "Dockerfile", "Vagrantfile", ".clang-format", "constraints.txt"}
APACHE = "Apache-2.0"
DUAL = "(GPL-2.0-only OR BSD-2-Clause)"
# All structures that programs and user space share are in one place, however many there are.
ONE_PLACE = {"bpf/lib/layout.h"}
GENERATED = re.compile(r"^(bpf/layouts\.py|api/.*_pb2(_grpc)?\.pyi?)$")
# Homes and checkouts; /home/vagrant is the user of every Vagrant box.
PRIVATE_PATH = re.compile(
    r"(?<![\w.$}/-])/(?:home/(?!vagrant\b)|Users/|work(?:space)?s?/|builds/)[a-z0-9_.-]+", re.I
)


def files(root: Path) -> Iterator[Path]:
    """Every file of the tree that could be committed, in order."""
    for path in sorted(root.iterdir()):
        if path.is_symlink() or path.name in SKIPPED_FOLDERS:
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def licence_expected(name: str) -> set[str]:
    """Which licences a file may bear. C for the kernel is dual, C for user space is not."""
    folder, _, rest = name.partition("/")
    if not name.endswith((".c", ".h")) or folder == "cni":
        return {APACHE}
    if folder == "bpf":
        # The header shim stands in for kernel headers and is no part of the programs.
        return {DUAL, APACHE} if rest.startswith("include/") else {DUAL}
    return {DUAL, APACHE}


def problems(name: str, text: str) -> Iterator[str]:
    """What is wrong with one file; name is its path from the root."""
    lines = text.splitlines()
    suffix, last = Path(name).suffix, Path(name).name
    generated = GENERATED.match(name) is not None
    script = suffix == "" and text.startswith("#!")
    if (suffix in LICENSED or last in LICENSED_NAMES or script) and not generated and text.strip():
        expected = licence_expected(name)
        found = re.search(r"SPDX-License-Identifier: (.+?)(?: \*/)?$", "\n".join(lines[:2]), re.M)
        if found is None or found[1] not in expected:
            yield f"{name}:1: needs 'SPDX-License-Identifier: {' or '.join(sorted(expected))}'"
    short = generated or name in ONE_PLACE
    if suffix in SOURCES and not short and len(lines) > MAX_LINES:
        yield f"{name}: {len(lines)} lines; more than {MAX_LINES} want to be two files"
    for number, line in enumerate(lines, 1):
        for match in PRIVATE_PATH.finditer(line):
            yield f"{name}:{number}: a path of one machine: {match[0]}"


def main() -> int:
    """Prints every problem; exit status 1 if there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parent.parent)
    root: Path = parser.parse_args().root.resolve()
    count = 0
    for path in files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a capture or a picture
        except FileNotFoundError:
            continue  # a checker's or an editor's temporary file
        for problem in problems(path.relative_to(root).as_posix(), text):
            print(problem)
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
