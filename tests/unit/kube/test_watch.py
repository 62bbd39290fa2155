# SPDX-License-Identifier: Apache-2.0
"""The manifest source in its own thread: what it hears of, and what it must not read too early."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.core.events import (
    Event,
    PodRemoved,
    PodUpserted,
    ResourceRejected,
    SourceStale,
    SourceSynced,
)
from agent.kube.inotify import Changes, Inotify, WatchUnavailable
from agent.kube.manifests import ManifestSource, Timing

_LONG_ENOUGH = 20.0  # a bound for hanging tests only


def pod_text(name: str, version: str = "1") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{v: v{version}}}}}\n"


class Receiver:
    """Collects events, and lets a test wait for a state of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[list[Event]], bool]) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: condition(self.events), _LONG_ENOUGH)
        assert done, self.events

    def wait_version(self, name: str, version: str | None) -> None:
        self.wait_for(lambda _: self.version(name) == version)

    def version(self, name: str) -> str | None:
        """The label of the pod as the last event about it has it; None when there is no pod."""
        for event in reversed(self.events):
            if isinstance(event, PodUpserted) and event.pod.name == name:
                return event.pod.labels["v"].removeprefix("v")
            if isinstance(event, PodRemoved) and event.key.name == name:
                return None
        return None

    def versions(self, name: str) -> list[str]:
        return [
            event.pod.labels["v"].removeprefix("v")
            for event in self.events
            if isinstance(event, PodUpserted) and event.pod.name == name
        ]


def no_watch() -> Inotify:
    raise WatchUnavailable("none in this test")


Start = Callable[..., tuple[ManifestSource, Receiver]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[ManifestSource] = []

    def start_one(
        root: Path = tmp_path,
        watcher: Callable[[], Inotify] = Inotify,
        timing: Timing | None = None,
    ) -> tuple[ManifestSource, Receiver]:
        receiver = Receiver()
        source = ManifestSource(root, receiver, watcher=watcher, timing=timing)
        source.start()
        running.append(source)
        return source, receiver

    yield start_one
    for source in running:
        source.stop()


def synced(events: list[Event]) -> bool:
    return any(isinstance(event, SourceSynced) for event in events)


_POLLING = Timing(poll=0.02)
_MODES = pytest.mark.parametrize(
    ("watcher", "timing"),
    [(Inotify, Timing(resync=3600)), (no_watch, _POLLING)],
    ids=["inotify", "polling"],
)


@_MODES
def test_adding_editing_renaming_and_removing_take_effect(
    start: Start, tmp_path: Path, watcher: Callable[[], Inotify], timing: Timing
) -> None:
    (tmp_path / "a.yaml").write_text(pod_text("p"))
    _, receiver = start(watcher=watcher, timing=timing)
    receiver.wait_for(synced)
    assert receiver.version("p") == "1"
    (tmp_path / "a.yaml").write_text(pod_text("p", "2"))
    receiver.wait_version("p", "2")
    (tmp_path / ".a.yaml.tmp").write_text(pod_text("p", "3"))
    (tmp_path / ".a.yaml.tmp").rename(tmp_path / "a.yaml")
    receiver.wait_version("p", "3")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.json").write_text('{"apiVersion":"v1","kind":"Pod"}')
    receiver.wait_for(lambda events: isinstance(events[-1], ResourceRejected))
    (tmp_path / "sub" / "b.json").write_text(
        '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q","labels":{"v":"v1"}}}'
    )
    receiver.wait_version("q", "1")
    (tmp_path / "sub").rename(tmp_path / "other")
    (tmp_path / "other" / "c.yaml").write_text(pod_text("r"))
    receiver.wait_version("r", "1")
    (tmp_path / "a.yaml").unlink()
    receiver.wait_version("p", None)
    (tmp_path / "other" / "b.json").unlink()
    receiver.wait_version("q", None)


@_MODES
def test_links_are_followed_when_their_target_changes(
    start: Start, tmp_path: Path, watcher: Callable[[], Inotify], timing: Timing
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "a.yaml").write_text(pod_text("p"))
    (root / "link.yaml").symlink_to(outside / "a.yaml")
    for version in "12":
        (root / f"..v{version}").mkdir()
        (root / f"..v{version}" / "b.yaml").write_text(pod_text("q", version))
    (root / "..data").symlink_to("..v1")
    (root / "b.yaml").symlink_to("..data/b.yaml")
    _, receiver = start(root, watcher, timing)
    receiver.wait_for(synced)
    (outside / "a.yaml").write_text(pod_text("p", "2"))
    receiver.wait_version("p", "2")
    (root / "..next").symlink_to("..v2")
    (root / "..next").rename(root / "..data")
    receiver.wait_version("q", "2")


def test_a_file_in_its_writers_hands_is_not_read(start: Start, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(pod_text("p"))
    _, receiver = start(timing=Timing(patience=3600))
    receiver.wait_for(synced)
    with open(tmp_path / "old.yaml", "w") as old, open(tmp_path / "new.yaml", "w") as new:
        for file, name in ((old, "p"), (new, "q")):
            file.write(pod_text(name, "half"))
            file.flush()
        # Heard of after the halves, by a single file and by a pass over the whole folder.
        (tmp_path / "other.yaml").write_text(pod_text("r"))
        receiver.wait_version("r", "1")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "last.yaml").write_text(pod_text("s"))
        receiver.wait_version("s", "1")
        for file, name in ((old, "p"), (new, "q")):
            file.seek(0)
            file.write(pod_text(name, "full"))
    os.chmod(tmp_path / "new.yaml", 0o600)  # as cp -p does, and tar
    receiver.wait_version("p", "full")
    receiver.wait_version("q", "full")
    assert receiver.versions("p") == ["1", "full"]
    assert receiver.versions("q") == ["full"]


def test_many_changes_at_once_are_one_batch(start: Start, tmp_path: Path) -> None:
    _, receiver = start(timing=Timing(debounce=0.5))
    receiver.wait_for(synced)
    for version in range(20):
        (tmp_path / "a.yaml").write_text(pod_text("p", str(version)))
    receiver.wait_version("p", "19")
    assert len(receiver.versions("p")) == 1


@pytest.mark.parametrize("lasting", [False, True])
def test_moving_a_file_leaves_no_gap(start: Start, tmp_path: Path, lasting: bool) -> None:
    """Also where a pass finds the old name gone and the new one too fresh to be read."""
    (tmp_path / "a.yaml").write_text(pod_text("p"))
    timing = Timing(debounce=0.4, patience=1.0)
    _, receiver = start(timing=timing)
    receiver.wait_for(synced)
    (tmp_path / "sub").mkdir()  # heard of: a pass follows
    time.sleep(0.2)
    if lasting:
        with open(tmp_path / "busy.yaml", "w") as file:  # not let go of: nothing waits for ever
            file.write(pod_text("q"))
            file.flush()
            (tmp_path / "a.yaml").unlink()
            receiver.wait_version("p", None)
        return
    (tmp_path / "a.yaml").rename(tmp_path / "sub" / "b.yaml")
    (tmp_path / "c.yaml").write_text(pod_text("q"))
    receiver.wait_version("q", "1")
    time.sleep(1.0)
    assert not any(isinstance(event, PodRemoved) for event in receiver.events)
    (tmp_path / "sub" / "b.yaml").unlink()
    receiver.wait_version("p", None)


class Forgetful(Inotify):
    """Loses what it was told, as the kernel does when its queue is full."""

    def read(self) -> Changes:
        return Changes(rescan=bool(super().read()))


class Deaf(Inotify):
    """Hears nothing at all."""

    def read(self) -> Changes:
        super().read()
        return Changes()


@pytest.mark.parametrize(
    ("watcher", "timing"),
    [(Forgetful, Timing(resync=3600)), (Deaf, Timing(resync=0.05))],
    ids=["overflow", "resync"],
)
def test_lost_events_are_made_up_for(
    start: Start, tmp_path: Path, watcher: Callable[[], Inotify], timing: Timing
) -> None:
    _, receiver = start(watcher=watcher, timing=timing)
    receiver.wait_for(synced)
    (tmp_path / "a.yaml").write_text(pod_text("p"))
    receiver.wait_version("p", "1")
    (tmp_path / "a.yaml").unlink()
    receiver.wait_version("p", None)


def test_polling_takes_over_when_watches_run_out(start: Start, tmp_path: Path) -> None:
    class Full(Inotify):
        def add(self, path: str) -> None:
            if path.endswith("sub"):
                raise WatchUnavailable("no more watches in this test")
            super().add(path)

    _, receiver = start(watcher=Full, timing=_POLLING)
    receiver.wait_for(synced)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text(pod_text("p"))
    receiver.wait_version("p", "1")


def test_a_folder_that_comes_late_goes_and_comes_back(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "late"
    _, receiver = start(root, timing=_POLLING)
    receiver.wait_for(lambda events: len(events) == 1)
    root.mkdir()
    receiver.wait_for(synced)
    (root / "a.yaml").write_text(pod_text("p"))
    receiver.wait_version("p", "1")
    root.rename(tmp_path / "away")
    receiver.wait_for(lambda events: isinstance(events[-1], SourceStale))
    assert receiver.version("p") == "1"
    (tmp_path / "away").rename(root)
    receiver.wait_for(lambda events: isinstance(events[-1], SourceSynced))
    (root / "a.yaml").write_text(pod_text("p", "2"))
    receiver.wait_version("p", "2")


def test_a_fault_in_the_source_does_not_end_it(start: Start, tmp_path: Path) -> None:
    class Faulty(Inotify):
        failed = False

        def wait(self, timeout: float | None) -> None:
            if not Faulty.failed:
                Faulty.failed = True
                raise RuntimeError("on purpose")
            super().wait(timeout)

    _, receiver = start(watcher=Faulty, timing=_POLLING)
    receiver.wait_for(lambda events: any(isinstance(e, SourceStale) for e in events))
    (tmp_path / "a.yaml").write_text(pod_text("p"))
    receiver.wait_version("p", "1")


def test_stop_ends_the_thread_and_closes_what_it_opened(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        receiver = Receiver()
        source = ManifestSource(tmp_path, receiver)
        source.start()
        with pytest.raises(RuntimeError):
            source.start()
        receiver.wait_for(synced)
        source.stop()
        source.stop()
    assert set(os.listdir("/proc/self/fd")) == before
    assert not any(thread.name.startswith("source-") for thread in threading.enumerate())


def test_a_clock_that_was_set_back_holds_nothing_up(tmp_path: Path) -> None:
    receiver = Receiver()
    (tmp_path / "a.yaml").write_text(pod_text("p"))
    source = ManifestSource(tmp_path, receiver, wall=lambda: time.time_ns() - 10**15)
    source.start()
    receiver.wait_version("p", "1")
    source.stop()
