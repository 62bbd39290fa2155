# SPDX-License-Identifier: Apache-2.0
"""Files of manifests split into documents, without parsing these.

So an edit costs only the documents that changed. Splitting at lines that begin with `---` is
exact: YAML 1.1 (section 4.2, c-forbidden) allows such a line nowhere inside a document. A JSON
list is split into its items.
"""

import re
from typing import NamedTuple

from agent.kube.jsontext import parse_json, split_list
from agent.kube.text import DocumentError
from agent.kube.yamltext import parse_yaml

_SEPARATOR = re.compile(rb"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)


class RawDocument(NamedTuple):
    """One document as text. `number` counts from 1, `line` is the line of the file it begins at.

    item: its index when it is an item of a JSON list, else None.
    list_kind, list_api_version: of that list; items of typed lists do not repeat them.
    """

    number: int
    line: int
    text: bytes
    is_json: bool = False
    item: int | None = None
    list_kind: str = ""
    list_api_version: str = ""

    def parse(self) -> object:
        """The document's content as dicts, lists and scalars; None when it is empty."""
        return parse_json(self.text) if self.is_json else parse_yaml(self.text, self.line)


def split(data: bytes, *, is_json: bool) -> list[RawDocument]:
    """The documents of a file. Raises DocumentError when the file as a whole is not readable."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DocumentError("the file is not UTF-8 text", line) from None
    return _split_json(data) if is_json else _split_yaml(data)


def _split_yaml(data: bytes) -> list[RawDocument]:
    starts = [match.start() for match in _SEPARATOR.finditer(data)]
    if not starts or not _is_preamble(data[: starts[0]]):
        starts.insert(0, 0)
    documents = []
    line, counted = 1, 0
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(data)], strict=True), 1):
        line += data.count(b"\n", counted, start)
        counted = start
        documents.append(RawDocument(number, line, data[start:end]))
    return documents


def _is_preamble(text: bytes) -> bool:
    """Only blank lines, comments and directives, so no document of its own."""
    return all(
        not line.strip() or line.lstrip().startswith(b"#") or line.startswith(b"%")
        for line in text.splitlines()
    )


def _split_json(data: bytes) -> list[RawDocument]:
    if not data.strip():
        return []
    found = split_list(data)
    if found is None:
        return [RawDocument(1, 1, data, is_json=True)]
    return [
        RawDocument(1, 1, text, True, index, found.kind, found.api_version)
        for index, text in enumerate(found.items)
    ]
