# SPDX-License-Identifier: Apache-2.0
"""How objects and lists are written, and which form a request accepts (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from bench.lab.apiserver.errors import Object, not_acceptable
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.store import Record

JSON = "application/json"
OFFERED = (JSON,)
_encode = msgspec.json.Encoder().encode
_PARTIAL = ("PartialObjectMetadata", "PartialObjectMetadataList")


@dataclass(frozen=True, slots=True)
class Form:
    """JSON of one kind. partial: only metadata."""

    kind: Kind
    partial: bool = False

    def one(self, record: Record) -> bytes:
        """A whole object."""
        return self._prefix + self._view(record).body

    def _view(self, record: Record) -> Record:
        if self.partial:
            return record.view("meta.k8s.io/v1", lambda item: {"metadata": item["metadata"]})
        return self.kind.view(record)

    @property
    def _prefix(self) -> bytes:
        if self.partial:
            return b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1",'
        return self.kind.prefix

    def many(self, records: list[Record], meta: Object) -> Iterator[bytes]:
        """A list in pieces. Items of built-in kinds bear no kind: that of the list says it."""
        kind = "PartialObjectMetadataList" if self.partial else self.kind.list_kind
        version = "meta.k8s.io/v1" if self.partial else self.kind.api_version
        head = _encode({"kind": kind, "apiVersion": version, "metadata": meta})
        yield head[:-1] + b',"items":['
        lead = self._prefix if self.kind.custom or self.partial else b"{"
        for start in range(0, len(records), 200):
            pieces = [lead + self._view(record).body for record in records[start : start + 200]]
            yield (b"," if start else b"") + b",".join(pieces)
        yield b"]}\n"

    def bookmark(self, meta: Object) -> bytes:
        """An object without content."""
        extra = {} if self.partial else self.kind.bookmark
        head: Object = {"kind": self.kind.name, "apiVersion": self.kind.api_version}
        if self.partial:
            head = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        return _encode({**head, "metadata": meta, **extra})


def accepted(header: str) -> str:
    """ "whole" or "partial": the first form that the Accept header takes. Raises ApiError 406."""
    if not header.strip():
        return "whole"
    ranges = []
    for order, part in enumerate(header.split(",")):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        values = dict(
            (key.strip().lower(), value.strip())
            for key, _, value in (text.partition("=") for text in parameters)
        )
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            quality = 1.0
        ranges.append((-quality, order, media.lower(), values))
    for quality, _, media, values in sorted(ranges, key=lambda entry: entry[:2]):
        if media not in (JSON, "*/*", "application/*") or quality == 0:
            continue
        form = values.get("as")
        if form is None:
            return "whole"
        if form in _PARTIAL and values.get("g") == "meta.k8s.io" and values.get("v") == "v1":
            return "partial"
    raise not_acceptable(OFFERED)
