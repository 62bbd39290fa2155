# SPDX-License-Identifier: Apache-2.0
"""The source of standalone mode: a watched folder of ordinary Kubernetes manifests.

Files `*.yaml`, `*.yml` and `*.json` in the folder and below it are read, links are followed, and
a mounted ConfigMap (files linked through `..data`) changes as a whole. Changes are heard through
inotify; where that is not available the folder is looked through once a second.

A file is read when its writer has closed or renamed it, never while it is being written. After a
lost event, and once a minute in any case, the whole folder is compared by file status.

What a document last said when it was valid is kept in a file besides (`agent.kube.last_good`).
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.core.events import Event, Fact, ResourceKey, SourceFailed, SourceStale, SourceSynced
from agent.kube.folder import Document, FileContent, Folder, Refusal
from agent.kube.inotify import Changes, Inotify, WatchUnavailable
from agent.kube.last_good import LastGood
from agent.kube.reading import (
    Stamp,
    Tree,
    display_name,
    is_manifest_name,
    read_bytes,
    read_content,
    walk,
)
from agent.state_file import StateFileError

_log = logging.getLogger(__name__)

_NEVER = float("inf")

# File times are only as fine as the file system makes them; within this time of a change, a file
# with the same stamp may still be another one, and is read again at the next pass.
_RACY_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Timing:
    """All in seconds.

    debounce: changes of this time are taken together; also how long a file found in a pass must
        have rested, for its writer may not be done.
    patience: how long a file that is known to be in a writer's hands must have rested.
    poll: between two passes where the folder cannot be watched or read.
    resync: between two passes where it is watched.
    first_pass: longest wait, at the start, for files that are just being written.
    remember: after a change, until what is now the last good state is written down.
    """

    debounce: float = 0.005
    patience: float = 1.0
    poll: float = 1.0
    resync: float = 60.0
    first_pass: float = 1.0
    remember: float = 1.0


@dataclass(slots=True)
class _Known:
    """A file as last read. `stamp` is None when it has to be read again in any case."""

    stamp: Stamp | None = None
    documents: tuple[Document, ...] = ()


class ManifestSource:
    """Delivers what a folder of manifests says, as events, from a thread of its own.

    emit: called for every event, in the source's thread (for `scan` in the caller's). It must not
        block for long and must not raise.
    clock: seconds, monotonic. wall: nanoseconds in the file system's time. Tests pass their own.
    watcher: makes the watch; raises WatchUnavailable when there is none.
    last_good: the file where the next agent finds what was last good; None: nowhere.
    """

    def __init__(
        self,
        directory: Path | str,
        emit: Callable[[Event], None],
        *,
        name: str = "manifests",
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
        watcher: Callable[[], Inotify] = Inotify,
        last_good: Path | None = None,
    ) -> None:
        self._root = str(directory)
        self._emit = emit
        self._name = name
        self._timing = timing or Timing()
        self._clock = clock
        self._wall = wall
        self._make_watcher = watcher
        self._watcher: Inotify | None = None
        self._last_good = LastGood(last_good, self._root) if last_good is not None else None
        self._folder = Folder(name, self._last_good.load() if self._last_good else None)
        self._remember_at = _NEVER
        self._known: dict[str, _Known] = {}
        self._tree = Tree()
        self._names: dict[str, str] = {}  # path -> name
        self._busy: set[str] = set()  # paths being written, as far as we have heard
        self._waits_since: float | None = None
        """Since when files that are gone wait for others that may be the same under other names."""
        self._synced = False
        self._trouble: Event | None = None
        self._stopping = threading.Event()
        self._closing = threading.Lock()  # so that `stop` wakes no descriptor already closed
        self._thread: threading.Thread | None = None

    @property
    def facts(self) -> Mapping[ResourceKey, Fact]:
        """What is in force. To be read in the source's thread, or when it is not running."""
        return self._folder.facts

    @property
    def synced(self) -> bool:
        """Whether the first full pass is complete."""
        return self._synced

    def start(self) -> None:
        """Starts the thread. Trouble is reported by events, not here."""
        if self._thread is not None:
            raise RuntimeError("the source has been started already")
        self._thread = threading.Thread(target=self._run, name=f"source-{self._name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and waits for it. What was delivered stays in force."""
        self._stopping.set()
        with self._closing:
            if self._watcher is not None:
                self._watcher.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def scan(self) -> None:
        """One pass over the whole folder, in the caller's thread; not while it is running."""
        self._pass(settle=0.0)
        self._report_synced()
        self._remember()

    # ---- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._watcher = self._make_watcher()
        except WatchUnavailable as error:
            _log.warning("watching %s by polling: %s", self._root, error)
        while not self._stopping.is_set():
            try:
                self._loop()
            except Exception as error:
                # A fault of ours must not silently end the source: start over with a full pass.
                _log.exception("manifest source %s", self._root)
                with contextlib.suppress(Exception):
                    self._report_trouble(f"{self._root}: internal error: {error!r}")
                self._stopping.wait(self._timing.poll)
        self._remember()
        self._close_watcher()

    def _loop(self) -> None:
        timing = self._timing
        give_up = self._clock() + timing.first_pass
        unsettled = self._pass(settle=timing.debounce)
        resync_at = self._clock() + timing.resync
        while True:
            if not unsettled or self._clock() >= give_up:
                self._stand_in(unsettled)
                self._report_synced()
            if self._clock() >= self._remember_at:
                self._remember()
            changes = self._next_changes(unsettled, resync_at)
            if self._stopping.is_set():
                return
            if changes.rescan:
                self._note_writers(changes.files)
                unsettled = self._pass(settle=timing.debounce)
                resync_at = self._clock() + timing.resync
            else:
                unsettled = self._take(changes.files)

    def _next_changes(self, unsettled: set[str], resync_at: float) -> Changes:
        """Waits until there is something to do; `unsettled` files are to be tried again."""
        timing = self._timing
        if unsettled:
            self._stopping.wait(timing.debounce)
            changes = self._watcher.read() if self._watcher else Changes()
            for path in unsettled:
                changes.files.setdefault(path, None)
            changes.rescan |= self._clock() >= resync_at or self._waits_since is not None
            return changes
        if self._watcher is None:
            self._stopping.wait(timing.poll)
            return Changes(rescan=True)
        timeout = timing.poll if self._trouble else resync_at - self._clock()
        self._watcher.wait(max(0.0, min(timeout, self._remember_at - self._clock())))
        changes = self._watcher.read()
        if not changes:
            # stop() has woken us, or it is time for a pass.
            return Changes(rescan=self._trouble is not None or self._clock() >= resync_at)
        self._stopping.wait(timing.debounce)
        changes.add(self._watcher.read())
        return changes

    def _close_watcher(self) -> None:
        with self._closing:
            watcher, self._watcher = self._watcher, None
            if watcher is not None:
                watcher.close()

    def _watch(self, directory: str) -> None:
        if self._watcher is None:
            return
        try:
            self._watcher.add(directory)
        except WatchUnavailable as error:
            _log.warning("watching %s by polling from now on: %s", self._root, error)
            self._close_watcher()

    # ---- passes ------------------------------------------------------------------------------

    def _pass(self, settle: float) -> set[str]:
        """Compares the whole tree by file status. Returns the paths that are not settled yet."""
        try:
            tree = walk(self._root, self._watch)
        except OSError as error:
            self._report_trouble(f"{self._root}: {error.strerror or error}")
            return set()
        if self._watcher is not None:
            self._watcher.retain(set(tree.directories))
        self._tree = tree
        self._names = {path: name for name, path in tree.files.items()}
        if self._trouble is not None:
            self._trouble, self._synced = None, False  # so that this pass ends with a report
        changes: dict[str, FileContent | None] = {}
        unsettled = {
            path
            for name, path in tree.files.items()
            if not self._examine(name, path, changes, settle)
        }
        gone = self._known.keys() - tree.files.keys() - tree.unreadable.keys()
        if gone and self._may_have_moved(unsettled):
            gone.clear()
        else:
            self._waits_since = None
        for name in gone:
            if not any(name.startswith(f"{folder}/") for folder in tree.unreadable):
                del self._known[name]
                changes[name] = None
        for name in {*self._folder.remembered} - tree.files.keys():
            if any(name.startswith(f"{folder}/") for folder in tree.unreadable):
                self._known[name] = _Known()
                changes[name] = FileContent(problem=Refusal("", "cannot be read: its folder"))
        for name, reason in tree.unreadable.items():
            self._known[name] = _Known()
            changes[name] = FileContent(problem=Refusal("", f"cannot be read: {reason}"))
        self._apply(changes)
        return unsettled

    def _may_have_moved(self, unsettled: Iterable[str]) -> bool:
        """Whether a file that cannot be read yet may hold what was in files that are gone: they are
        forgotten when it has been read, or its writer has had long enough."""
        if all(self._names[path] in self._known for path in unsettled):
            return False
        self._waits_since = self._waits_since or self._clock()
        return self._clock() - self._waits_since < self._timing.patience

    def _take(self, files: Mapping[str, bool | None]) -> set[str]:
        """Reads single files of which something has been heard. Returns as `_pass` does."""
        self._note_writers(files)
        if any(self._needs_pass(path) for path in files):
            return self._pass(settle=self._timing.debounce)
        changes: dict[str, FileContent | None] = {}
        unsettled: set[str] = set()
        for path in files:
            name = self._names.get(path) or self._new_name(path)
            if name and not self._examine(name, path, changes, settle=0.0):
                unsettled.add(path)
        self._apply(changes)
        return unsettled

    def _note_writers(self, files: Mapping[str, bool | None]) -> None:
        for path, complete in files.items():
            if complete:
                self._busy.discard(path)
            elif complete is not None and is_manifest_name(os.path.basename(path)):
                self._busy.add(path)

    def _needs_pass(self, path: str) -> bool:
        """Whether links are involved, so that other files than this one may be concerned."""
        return path in self._tree.targets or path in self._tree.directories or os.path.islink(path)

    def _new_name(self, path: str) -> str | None:
        """The name of a manifest not seen before; None for any other file."""
        folder, base = os.path.split(path)
        parent = self._tree.directories.get(folder)
        if parent is None or not is_manifest_name(base):
            return None
        self._names[path] = name = display_name(os.path.join(parent, base))
        return name

    # ---- one file ----------------------------------------------------------------------------

    def _examine(
        self, name: str, path: str, changes: dict[str, FileContent | None], settle: float
    ) -> bool:
        """Reads the file if it has changed. False: it may still be in its writer's hands."""
        known = self._known.get(name) or _Known()
        try:
            stamp = Stamp.of(os.stat(path))
            if stamp == known.stamp:
                return True
            rest = self._timing.patience if path in self._busy else settle
            if 0 <= self._wall() - stamp.changed_ns < rest * 1e9:
                return False
            self._busy.discard(path)
            data, stamp = read_bytes(path)
        except FileNotFoundError:
            if self._known.pop(name, None) is not None:
                changes[name] = None
            self._names.pop(path, None)
            self._busy.discard(path)
            return True
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._known[name] = _Known(None, known.documents)
            changes[name] = FileContent(problem=Refusal("", f"cannot be read: {reason}"))
            return True
        content = read_content(data, is_json=name.lower().endswith(".json"), known=known.documents)
        racy = self._wall() - stamp.changed_ns < _RACY_NS
        self._known[name] = _Known(
            None if racy else stamp, known.documents if content.problem else content.documents
        )
        changes[name] = content
        return True

    def _apply(self, changes: Mapping[str, FileContent | None]) -> None:
        if changes:
            self._emit_all(self._folder.apply(changes))
        if self._folder.to_remember:
            self._folder.to_remember = False
            self._remember_at = min(self._remember_at, self._clock() + self._timing.remember)

    def _stand_in(self, unsettled: Iterable[str]) -> None:
        """Files that their writers do not let go of, not read yet: what they said before counts."""
        names = {self._names[path] for path in unsettled if path in self._names}
        problem = FileContent(problem=Refusal("", "is being written"))
        self._apply({name: problem for name in names.intersection(self._folder.remembered)})

    def _remember(self) -> None:
        if self._remember_at == _NEVER or self._last_good is None:
            return
        self._remember_at = _NEVER
        try:
            self._last_good.save(self._folder.last_good())
        except StateFileError as error:
            self._remember_at = self._clock() + self._timing.resync
            _log.error("what is in force could not be written down: %s", error)

    def _emit_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._emit(event)

    def _report_synced(self) -> None:
        if not self._synced and self._trouble is None:
            self._synced = True
            self._folder.forget(self._tree.files)
            self._emit(SourceSynced(self._name))

    def _report_trouble(self, reason: str) -> None:
        event = (SourceStale if self._synced else SourceFailed)(self._name, reason)
        if event != self._trouble:
            self._trouble = event
            self._emit(event)
