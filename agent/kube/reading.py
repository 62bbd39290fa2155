# SPDX-License-Identifier: Apache-2.0
"""Manifest files: which there are below a folder, and what one of them says."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.kube.documents import RawDocument, split
from agent.kube.fields import TranslateError
from agent.kube.folder import Document, FileContent, Outcome, Refusal
from agent.kube.text import DocumentError
from agent.kube.translate import list_items, translate, typed_item

MAX_FILE_BYTES = 4 << 20
MAX_DIRECTORY_DEPTH = 32

_SUFFIXES = (".yaml", ".yml", ".json")
_READ_ATTEMPTS = 3


def is_manifest_name(name: str) -> bool:
    """Whether a file of this name is read: editors' temporary files and hidden ones are not."""
    return not name.startswith((".", "#")) and name.lower().endswith(_SUFFIXES)


def display_name(path: str) -> str:
    """A path as text that can be printed and sent, whatever bytes it is made of."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


# ---- the tree --------------------------------------------------------------------------------


@dataclass(slots=True)
class Tree:
    """What lies below a folder. Names are paths relative to it.

    files: name -> path of each manifest.
    directories: path -> name of every directory read, to be watched; the name is None for those
        outside that links lead to.
    targets: real paths of files reached through a link.
    unreadable: name of a directory that could not be read -> reason.
    """

    files: dict[str, str] = field(default_factory=dict)
    directories: dict[str, str | None] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)


def walk(root: str, on_directory: Callable[[str], None]) -> Tree:
    """Lists the tree, following links, each directory once.

    on_directory: called before a directory is listed, so that a watch placed there misses nothing.
    Raises OSError when the root itself cannot be read.
    """
    tree = Tree()
    seen: set[tuple[int, int]] = set()
    pending = [("", root, 0)]
    while pending:
        name, path, depth = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            on_directory(path)
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if not name:
                raise
            if not isinstance(error, FileNotFoundError):
                tree.unreadable[display_name(name)] = error.strerror or str(error)
            continue
        tree.directories[path] = name
        for entry in entries:
            inner = os.path.join(name, entry.name)
            if entry.name.startswith("."):
                continue
            if _is_directory(entry):
                if depth < MAX_DIRECTORY_DEPTH:
                    pending.append((inner, entry.path, depth + 1))
                else:
                    tree.unreadable[display_name(inner)] = "too many folders within each other"
            elif is_manifest_name(entry.name):
                tree.files[display_name(inner)] = entry.path
                if entry.is_symlink():
                    tree.targets.add(os.path.realpath(entry.path))
    outside = {os.path.dirname(target) for target in tree.targets}
    for path in outside - {os.path.realpath(known) for known in tree.directories}:
        on_directory(path)
        tree.directories[path] = None
    return tree


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


# ---- one file --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identity of a file's state: equal stamps, equal content, unless changed within `changed_ns`.

    changed_ns: time of the last change (st_ctime), which nobody can set back.
    """

    token: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        changed = status.st_ctime_ns
        fields = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, changed)
        return cls(hash(fields), changed)


def read_bytes(path: str, limit: int = MAX_FILE_BYTES) -> tuple[bytes, Stamp]:
    """The file's content. Raises OSError, or ValueError for what is no file of a fair size."""
    # Not blocking: a FIFO with a manifest's name must not hold up the source.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for _ in range(_READ_ATTEMPTS):
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise ValueError("is no regular file")
            data = _read_all(fd, limit + 1)
            if len(data) > limit:
                raise ValueError(f"is larger than {limit} bytes; split it into several files")
            after = Stamp.of(os.fstat(fd))
            if after == Stamp.of(before):
                break
            os.lseek(fd, 0, os.SEEK_SET)
        return data, after
    finally:
        os.close(fd)


def _read_all(fd: int, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := os.read(fd, limit)):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def read_content(data: bytes, *, is_json: bool, known: Iterable[Document] = ()) -> FileContent:
    """The documents of a file, translated. Never raises for any input.

    known: documents of this file as read before; those that are still there are not parsed again.
    """
    try:
        raw_documents = split(data, is_json=is_json)
    except DocumentError as error:
        return FileContent(problem=Refusal("", str(error), syntax=True))
    translated = {document.digest: document for document in known if _reusable(document)}
    documents = []
    for raw in raw_documents:
        digest = _digest(raw)
        old = translated.get(digest)
        if old is None:
            outcomes, listed = _outcomes(raw)
            documents.append(Document(raw.number, digest, outcomes, raw.item, listed))
        elif (old.number, old.item) == (raw.number, raw.item):
            documents.append(old)
        else:
            documents.append(Document(raw.number, digest, old.outcomes, raw.item, old.listed))
    return FileContent(tuple(documents))


def _reusable(document: Document) -> bool:
    """Syntax errors are found again, because their messages name lines, which move."""
    return not any(isinstance(o, Refusal) and o.syntax for o in document.outcomes)


def _digest(raw: RawDocument) -> bytes:
    person = b""
    if raw.list_kind:  # what the text means depends on the list it is in, too
        context = f"{raw.list_kind} {raw.list_api_version}".encode()
        person = hashlib.blake2b(context, digest_size=16).digest()
    return hashlib.blake2b(raw.text, digest_size=16, person=person).digest()


def _outcomes(raw: RawDocument) -> tuple[tuple[Outcome, ...], bool]:
    """What the document means, and whether it is a list."""
    try:
        obj = raw.parse()
        if obj is None:
            return (), False
        if raw.item is not None:
            obj = typed_item(obj, raw.list_kind, raw.list_api_version, raw.item)
        items = list_items(obj)
    except DocumentError as error:
        return (Refusal("", str(error), syntax=True),), False
    except TranslateError as error:
        return (Refusal(error.field, error.message),), False
    if items is None:
        return (_outcome(obj),), False
    return tuple(_outcome(item) for item in items), True


def _outcome(obj: object) -> Outcome:
    try:
        return translate(obj)
    except TranslateError as error:
        return Refusal(error.field, error.message, error.key)
