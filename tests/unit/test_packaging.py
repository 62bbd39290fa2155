# SPDX-License-Identifier: Apache-2.0
"""The tree is what gets imported, pins are complete, and the agent stays small."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "api", "bench", "bpf", "cni", "identity", "policy")

# Runs in an interpreter of its own: this one has imported who knows what.
PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def imported_by(*modules: str) -> set[str]:
    """Top-level names in sys.modules after importing these in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *modules],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def agent_modules() -> list[str]:
    """Every module of the agent but programs of their own (`__main__`, the loader child)."""
    agent = importlib.import_module("agent")
    names = [m.name for m in pkgutil.walk_packages(agent.__path__, "agent.", onerror=print)]
    own = ("agent.kernel.loader_child",)
    return ["agent", *(n for n in names if n not in own and not n.endswith(".__main__"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_the_one_of_this_tree(package: str) -> None:
    """Plain names are common: another package of the name must not take its place."""
    module = importlib.import_module(package)
    assert module.__file__ == str(ROOT / package / "__init__.py")
    assert module.__doc__, f"{package}/__init__.py says nothing about what belongs there"


def test_agent_never_imports_llvm() -> None:
    """bcc costs over 70 MB and can take its process down: the loader child alone imports it."""
    assert "bcc" not in imported_by(*agent_modules())


@pytest.mark.parametrize("entry", ["agent", "agent.cli", "agent.daemon"])
def test_entry_points_leave_the_cluster_client_alone(entry: str) -> None:
    """kubernetes.client is 43 MiB resident: only cluster mode may pay for it."""
    assert not imported_by(entry) & {"kubernetes", "bcc"}


def pins() -> dict[str, Version]:
    """constraints.txt: normalised name to version; every line an exact one."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and requirement.marker is None, line
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = Version(specifier.version)
    return found


def closure(roots: list[Requirement]) -> Iterator[Requirement]:
    """The requirements and, from what is installed, all that they pull in here."""
    seen: set[tuple[str, str]] = set()
    queue = [(root, extra) for root in roots for extra in (root.extras or {""})]
    while queue:
        requirement, extra = queue.pop()
        key = (canonicalize_name(requirement.name), extra)
        yield requirement
        if key in seen:
            continue
        seen.add(key)
        for text in metadata.distribution(requirement.name).requires or ():
            below = Requirement(text)
            if below.marker is None or below.marker.evaluate({"extra": extra}):
                queue.extend((below, inner) for inner in (below.extras or {""}))


def test_pins_are_complete_and_installed() -> None:
    """constraints.txt is the closure of pyproject.toml, no more and no less, and is in force."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [
        Requirement(text)
        for text in [
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["dev"],
        ]
    ]
    pinned = pins()
    for requirement in declared:
        pin = pinned.get(canonicalize_name(requirement.name))
        assert str(requirement.specifier) == f"=={pin}", f"{requirement} against pin {pin}"
    needed = set()
    for requirement in closure(declared):
        name = canonicalize_name(requirement.name)
        needed.add(name)
        assert name in pinned, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pinned[name], prereleases=True), requirement
    assert set(pinned) == needed
    installed = {name: Version(metadata.version(name)) for name in pinned}
    assert installed == pinned
    assert "bcc" not in pinned  # the bcc of PyPI is a lattice library


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("agent/x.py", '"""No licence."""\n', "SPDX"),
        ("bpf/lib/x.h", "/* SPDX-License-Identifier: Apache-2.0 */\n", "SPDX"),
        ("cni/x.c", "/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */\n", "SPDX"),
        ("agent/x.py", "# SPDX-License-Identifier: Apache-2.0\n" + "x = 1\n" * 500, "501 lines"),
        ("docs/x.md", "see /ho" + "me/alice/bristle", "one machine"),
    ],
)
def test_tree_rules_can_fail(name: str, text: str, complaint: str) -> None:
    """The rules of `make lint` that are ours; tools/check_tree.py runs them over the tree."""
    from tools.check_tree import problems

    (found,) = problems(name, text)
    assert complaint in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("agent/x.py", "#!/usr/bin/python3\n# SPDX-License-Identifier: Apache-2.0\n"),
        ("bpf/x.c", "/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */\n"),
        ("bpf/layouts.py", "x = 1\n" * 2000),
        ("docs/x.md", "/var/lib/bristle, /home/vagrant/x and https://example.org/home/index"),
    ],
)
def test_tree_rules_let_good_files_pass(name: str, text: str) -> None:
    from tools.check_tree import problems

    assert list(problems(name, text)) == []


def test_cleanup_spares_what_is_in_use(tmp_path: Path) -> None:
    """Several test runs share a machine: only what nobody can be using is removed."""
    from tools.cleanup import REST_SECONDS, Found, is_stray

    def stray(name: str, age: float, inside: frozenset[int] = frozenset()) -> bool:
        path = tmp_path / name
        path.touch()
        found = Found("folder", path, path.unlink, inside)
        return is_stray(found, path.stat().st_mtime + age, lambda pid: pid == 42)

    assert stray("bristle-t-41-a", 0)
    assert not stray("bristle-t-42-a", 10 * REST_SECONDS)
    assert not stray("bristle-t-world", REST_SECONDS - 1)
    assert stray("bristle-t-world", REST_SECONDS + 1)
    assert not stray("bristle-t-world", REST_SECONDS + 1, frozenset({7}))
