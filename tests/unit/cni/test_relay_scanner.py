# SPDX-License-Identifier: Apache-2.0
"""The relay's JSON scanner, compiled with sanitizers, held against Python's json."""

import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.results import VERSIONS

SHIM = Path(__file__).parents[3] / "cni" / "shim.c"
HARNESS = r"""
#define main relay_main
#include "%s"
#undef main

static void show(const char *text)
{
	for (; text && *text; text++)
		printf("%%02x", (unsigned char)*text);
	printf(text ? " " : "- ");
}

int main(void)
{
	for (uint32_t len; fread(&len, 4, 1, stdin) == 1;) {
		char *document = malloc(len); /* so that one byte too far is seen */
		struct setting *all[] = { &cni_version, &run_dir, &state_dir };

		if (fread(document, 1, len, stdin) != len)
			return 1;
		for (int i = 0; i < 3; i++)
			*all[i] = (struct setting){ .key = all[i]->key };
		printf("%%d ", scan_config(document, len));
		show(folder_of(&run_dir, "default", MAX_RUN_DIR));
		show(folder_of(&state_dir, "default", MAX_STATE_DIR));
		show(printable_version());
		printf("\n");
		fflush(stdout);
		free(document);
	}
}
"""


@dataclass
class Scanned:
    """What the relay makes of a document; None: a folder that it refuses."""

    accepted: bool
    run_dir: str | None
    state_dir: str | None
    version: str


class Scanner:
    """The harness as a running process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout

    def __call__(self, document: bytes) -> Scanned:
        self.stdin.write(struct.pack("<I", len(document)) + document)
        self.stdin.flush()
        accepted, *texts = self.stdout.readline().decode().split(" ")[:4]
        run, state, version = (None if t == "-" else bytes.fromhex(t).decode() for t in texts)
        assert version is not None
        return Scanned(accepted == "1", run, state, version)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanner]:
    folder = tmp_path_factory.mktemp("scanner")
    (folder / "harness.c").write_text(HARNESS % SHIM)
    flags = ["-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["gcc", *flags, "-o", str(folder / "harness"), str(folder / "harness.c")]
    subprocess.run(command, check=True)
    with subprocess.Popen(
        [folder / "harness"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        scanner = Scanner(process)
        yield scanner
        scanner.stdin.close()
        assert process.wait(10) == 0, "a sanitizer found something"


def expected(document: dict[str, Any], key: str, longest: int) -> str | None:
    """The folder that a decoded configuration names."""
    value = document.get(key, "default")
    if key not in document:
        return "default"
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        return None
    return value if len(value.encode()) <= longest else None


keys = st.sampled_from(["runDir", "stateDir", "cniVersion", "name", "rundir", "runDir ", ""])
paths = st.text(max_size=6).map(lambda s: "/" + s) | st.integers(95, 102).map(lambda n: "/" * n)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | paths | st.text()
values = st.recursive(
    leaves.filter(lambda v: v not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(document=st.dictionaries(keys, values, max_size=5), indent=st.none() | st.integers(0, 2))
def test_finds_what_python_finds(
    scan: Scanner, document: dict[str, Any], indent: int | None
) -> None:
    found = scan(json.dumps(document, indent=indent, ensure_ascii=False).encode())
    assert found.accepted
    assert found.run_dir == expected(document, "runDir", 98)
    assert found.state_dir == expected(document, "stateDir", 4000)


@given(value=st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20))
def test_escapes_are_undone(scan: Scanner, value: str) -> None:
    document = {"runDir": "/" + value}
    for text in (json.dumps(document), json.dumps(document).replace("runD", "\\u0072un\\u0044")):
        assert scan(text.encode()).run_dir == expected(document, "runDir", 98)


@pytest.mark.parametrize(
    "text",
    [
        '{"runDir": "/\\ud83d\\ude00"}',  # beyond the basic plane only as it is, not escaped
        '{"runDir": "/\\udc00"}',
        '{"runDir": "/a\\u0000b"}',
        '{"runDir": "run"}',
        '{"runDir": ""}',
        '{"runDir": null}',
        '{"runDir": ["/a"]}',
        '{"runDir": {"runDir": "/a"}}',
        '{"runDir": "/a", "runDir": 1}',
    ],
)
def test_folders_that_cannot_be_used(scan: Scanner, text: str) -> None:
    assert scan(text.encode()).run_dir is None


def test_only_the_outermost_objects_last_key_counts(scan: Scanner) -> None:
    text = """{"a": {"runDir": "/no"}, "b": [{"runDir": "/no"}], "c": "\\"runDir\\": \\"/no\\"",
    "runDir": 1, "runDir" :\n"/yes", "runDir2": "/no", "d": ["runDir", "/no"], "e": "runDir"}"""
    assert scan(text.encode()) == Scanned(True, "/yes", "default", "1.1.0")


@pytest.mark.parametrize("length", [98, 99, 3999, 4000, 4001, 4002, 4003, 100_000])
def test_long_strings(scan: Scanner, length: int) -> None:
    path = "/" + "x" * (length - 1)
    document = {path: path, "runDir": path, "stateDir": path, "cniVersion": path, "n": [path]}
    found = scan(json.dumps(document).encode())
    assert found.run_dir == expected(document, "runDir", 98)
    assert found.state_dir == expected(document, "stateDir", 4000)
    assert found.accepted and found.version == "1.1.0"


NO_OBJECTS = (
    *("", " ", "[]", '"x"', "{", '{"a":1', '{"a', '{"a\\', '{"a\\u12', '{"a\\x":1}', "{}x", "{}{}"),
    *("}", "{{}", '{"a":"\n"}', '{"a":"\\u12g4"}', "x{}", "\0{}"),
)


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_what_is_no_object(scan: Scanner, text: str) -> None:
    assert not scan(text.encode()).accepted


def test_the_version_is_printed_only_if_it_is_harmless(scan: Scanner) -> None:
    for version in (*VERSIONS, "1.2.0-rc1"):
        assert scan(json.dumps({"cniVersion": version}).encode()).version == version
    for harmful in ('1"', "\\", "", "é", "1" * 40, "1.0\0", 1, None, "%s"):
        assert scan(json.dumps({"cniVersion": harmful}).encode()).version == "1.1.0"


@given(data=st.data(), document=st.dictionaries(keys, values, min_size=1, max_size=4))
def test_any_bytes(scan: Scanner, data: st.DataObject, document: dict[str, Any]) -> None:
    """No document harms it, and none that Python takes is refused or read otherwise."""
    raw = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.sampled_from(b'{}[]:,"\\u0/ \x00\xff') | st.integers(0, 255))
    del raw[data.draw(st.integers(1, len(raw))) :]
    found = scan(bytes(raw))
    try:
        decoded = json.loads(raw.decode())
        run_dir = expected(decoded, "runDir", 98) if isinstance(decoded, dict) else None
        run_dir.encode() if run_dir else None
    except ValueError:  # no JSON, no UTF-8, or half a surrogate pair
        return
    assert found.accepted == isinstance(decoded, dict)
    if found.accepted and not any(ord(c) > 0xFFFF for c in run_dir or ""):
        assert found.run_dir == run_dir


@given(st.binary(max_size=80))
def test_any_binary(scan: Scanner, document: bytes) -> None:
    scan(document)
