# SPDX-License-Identifier: Apache-2.0
"""The manifest source on real folders: what is in force after any history of files."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.events import (
    Event,
    NamespaceRemoved,
    NamespaceUpserted,
    Origin,
    Pod,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    PolicyUpserted,
    RejectionCleared,
    ResourceIgnored,
    ResourceKey,
    ResourceRejected,
    SourceFailed,
    SourceStale,
    SourceSynced,
    fact_key,
)
from agent.kube.manifests import ManifestSource
from agent.kube.reading import MAX_FILE_BYTES

# ---- a folder and what it says ---------------------------------------------------------------


def pod_text(name: str, version: str = "1") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{v: v{version}}}}}\n"


def policy_text(name: str, port: object = 80) -> str:
    return (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        f"metadata:\n  name: {name}\nspec:\n  podSelector: {{}}\n"
        f"  ingress:\n  - ports:\n    - port: {port}\n"
    )


def joined(*documents: str) -> str:
    return "---\n".join(documents)


class Mirror:
    """What a receiver makes of the events alone."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.facts: dict[tuple[str, str, str], object] = {}
        self.rejected: dict[Origin, ResourceRejected] = {}

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, PodUpserted):
            self._upsert(event.pod.key, event.pod)
        elif isinstance(event, NamespaceUpserted):
            self._upsert(event.namespace.key, event.namespace)
        elif isinstance(event, PolicyUpserted):
            self._upsert(fact_key(event.policy), event.policy)
        elif isinstance(event, PodRemoved | NamespaceRemoved | PolicyRemoved):
            del self.facts[event.key]
        elif isinstance(event, ResourceRejected):
            assert self.rejected.get(event.origin) != event, "rejected twice for the same"
            self.rejected[event.origin] = event
        elif isinstance(event, RejectionCleared):
            del self.rejected[event.origin]

    def _upsert(self, key: ResourceKey, fact: object) -> None:
        assert self.facts.get(key) != fact, f"{key} has not changed"
        self.facts[key] = fact

    def take(self) -> list[Event]:
        taken, self.events = self.events, []
        return taken

    def version(self, name: str) -> str | None:
        fact = self.facts.get(("Pod", "default", name))
        return fact.labels["v"].removeprefix("v") if isinstance(fact, Pod) else None

    def rejections(self) -> list[tuple[str, str, str]]:
        return sorted((str(r.origin), r.field, r.message) for r in self.rejected.values())


class Fixture:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept = root / ".kept"  # hidden, so no manifest
        self.restart()

    def restart(self) -> None:
        """Another agent, which knows what the former one kept."""
        self.mirror = Mirror()
        self.source = ManifestSource(self.root, self.mirror, last_good=self.kept)

    def write(self, name: str, *documents: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(joined(*documents))

    def scan(self) -> list[Event]:
        self.source.scan()
        return self.mirror.take()


@pytest.fixture
def folder(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


# ---- the rules, one by one -------------------------------------------------------------------


def test_facts_come_before_synced_and_only_changes_after(folder: Fixture) -> None:
    folder.write("a.yaml", pod_text("p"), policy_text("np"))
    folder.write("sub/deep/b.yml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
    kinds: list[object] = [type(event) for event in folder.scan()]
    assert kinds == [NamespaceUpserted, PolicyUpserted, PodUpserted, SourceSynced]
    assert folder.scan() == []
    folder.write("a.yaml", "# a comment\n" + policy_text("np"), pod_text("p"))
    assert folder.scan() == []
    folder.write("a.yaml", pod_text("p", "2"), policy_text("np"))
    assert [type(event) for event in folder.scan()] == [PodUpserted]
    (folder.root / "a.yaml").unlink()
    assert [type(event).__name__ for event in folder.scan()] == ["PodRemoved", "PolicyRemoved"]


def test_only_manifests_are_read(folder: Fixture) -> None:
    for name in (
        ".a.yaml",
        "a.yaml~",
        "a.yaml.swp",
        "#a.yaml",
        ".git/a.yaml",
        "a.txt",
        "..x/a.yml",
    ):
        folder.write(name, pod_text("p"))
    (folder.root / "folder.yaml").mkdir()
    assert folder.scan() == [SourceSynced("manifests")]
    folder.write("folder.yaml/A.YAML", pod_text("p"))
    assert [type(event) for event in folder.scan()] == [PodUpserted]


def test_an_invalid_document_keeps_its_last_good_state(folder: Fixture) -> None:
    folder.write("a.yaml", policy_text("np", 80), pod_text("p", "1"))
    folder.scan()
    before = folder.mirror.facts[("NetworkPolicy", "default", "np")]
    folder.write("a.yaml", policy_text("np", 0), pod_text("p", "2"))
    rejected, upserted = sorted(folder.scan(), key=lambda e: type(e).__name__, reverse=True)
    assert isinstance(rejected, ResourceRejected)
    assert rejected.origin == Origin("a.yaml", 1)
    assert rejected.field == "spec.ingress[0].ports[0].port"
    assert rejected.resource == ResourceKey("NetworkPolicy", "default", "np")
    assert isinstance(upserted, PodUpserted)
    assert folder.mirror.facts[("NetworkPolicy", "default", "np")] == before
    folder.write("a.yaml", policy_text("np", 81), pod_text("p", "2"))
    assert [type(e) for e in folder.scan()] == [PolicyUpserted, RejectionCleared]
    folder.write("a.yaml", policy_text("np", 0))
    folder.scan()
    (folder.root / "a.yaml").unlink()
    assert [type(e) for e in folder.scan()] == [PolicyRemoved, RejectionCleared]


@pytest.mark.parametrize(
    ("broken", "origin", "message"),
    [
        (b"a: [\n---\n" + pod_text("q").encode(), Origin("a.yaml", 1), "line 2: "),
        (b"\xff\xfe", Origin("a.yaml"), "not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), Origin("a.yaml"), "larger than 4194304 bytes"),
        (b"apiVersion: v1\nkind: Pod\n", Origin("a.yaml", 1), "is required"),
        (b"just words", Origin("a.yaml", 1), "Kubernetes object is expected"),
        (b"kind: List\nitems: 5", Origin("a.yaml", 1), "must be a list"),
    ],
)
def test_a_file_that_tells_nothing_keeps_all_it_had(
    folder: Fixture, broken: bytes, origin: Origin, message: str
) -> None:
    folder.write("a.yaml", pod_text("p"), policy_text("np"))
    folder.scan()
    before = dict(folder.mirror.facts)
    (folder.root / "a.yaml").write_bytes(broken)
    folder.scan()
    assert folder.mirror.facts.items() >= before.items()
    assert message in folder.mirror.rejected[origin].message
    folder.write("a.yaml", pod_text("p"))
    folder.scan()
    assert folder.mirror.facts.keys() == {("Pod", "default", "p")}
    assert not folder.mirror.rejected


def test_the_first_path_wins_and_the_next_takes_over_without_a_gap(folder: Fixture) -> None:
    folder.write("b.yaml", pod_text("q"), pod_text("p", "2"))
    folder.scan()
    folder.write("a.yaml", pod_text("p", "1"))
    assert [type(e) for e in folder.scan()] == [PodUpserted, ResourceRejected]
    assert folder.mirror.version("p") == "1"
    (rejection,) = folder.mirror.rejected.values()
    assert rejection.origin == Origin("b.yaml", 2)
    assert "a.yaml document 1" in rejection.message
    (folder.root / "a.yaml").unlink()
    assert [type(e) for e in folder.scan()] == [PodUpserted, RejectionCleared]
    assert folder.mirror.version("p") == "2"
    folder.write("b.yaml", pod_text("p", "2"), pod_text("p", "3"))
    folder.scan()
    assert folder.mirror.version("p") == "2"
    assert folder.mirror.rejected.keys() == {Origin("b.yaml", 2)}


@pytest.mark.parametrize(
    "broken", [b"apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: 5}", b"\xff"]
)
def test_a_last_good_state_that_does_not_count_is_no_duplicate(
    folder: Fixture, broken: bytes
) -> None:
    folder.write("b.yaml", pod_text("q"), pod_text("p", "2"))
    folder.write("a.yaml", pod_text("p", "1"))
    folder.scan()
    (folder.root / "b.yaml").write_bytes(broken)
    folder.scan()
    (rejection,) = folder.mirror.rejected.values()
    assert "also defined" not in rejection.message
    (folder.root / "a.yaml").unlink()
    folder.scan()
    assert folder.mirror.version("p") == "2"


def test_a_syntax_error_is_reported_where_it_is_now(folder: Fixture) -> None:
    folder.write("a.yaml", pod_text("p"), "a: [\n")
    folder.scan()
    assert folder.mirror.rejected[Origin("a.yaml", 2)].message.startswith("line 6: ")
    folder.write("a.yaml", "# one more line\n" + pod_text("p"), "a: [\n")
    folder.scan()
    assert folder.mirror.rejected[Origin("a.yaml", 2)].message.startswith("line 7: ")


def test_moving_a_resource_to_another_file_changes_nothing(folder: Fixture) -> None:
    folder.write("a.yaml", pod_text("p"))
    folder.scan()
    (folder.root / "a.yaml").rename(folder.root / "z.yaml")
    assert folder.scan() == []


def test_lists_and_other_kinds(folder: Fixture) -> None:
    pods = [{"metadata": {"name": name}} for name in ("p", "q", "P")]
    text = json.dumps({"apiVersion": "v1", "kind": "PodList", "items": pods})
    folder.write("a.json", text)
    folder.write("b.yaml", "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Secret}\n")
    events = folder.scan()
    assert folder.mirror.facts.keys() == {("Pod", "default", "p"), ("Pod", "default", "q")}
    assert folder.mirror.rejected.keys() == {Origin("a.json", 1, 2)}
    (ignored,) = (e for e in events if isinstance(e, ResourceIgnored))
    assert ignored.origin == Origin("b.yaml", 1, 0)
    pods[1]["metadata"]["uid"] = "new"
    folder.write("a.json", json.dumps({"apiVersion": "v1", "kind": "PodList", "items": pods}))
    assert [type(e) for e in folder.scan()] == [PodUpserted]


def test_a_mounted_config_map_changes_as_a_whole(folder: Fixture) -> None:
    root = folder.root
    for version in ("1", "2"):
        folder.write(f"..v{version}/a.yaml", pod_text("p", version))
        folder.write(f"..v{version}/b.yaml", pod_text("q", version))
    (root / "..data").symlink_to("..v1")
    for name in ("a.yaml", "b.yaml"):
        (root / name).symlink_to(f"..data/{name}")
    folder.scan()
    assert (folder.mirror.version("p"), folder.mirror.version("q")) == ("1", "1")
    (root / "..new").symlink_to("..v2")
    (root / "..new").rename(root / "..data")
    assert [type(e) for e in folder.scan()] == [PodUpserted, PodUpserted]
    assert (folder.mirror.version("p"), folder.mirror.version("q")) == ("2", "2")


def test_odd_things_in_the_folder(folder: Fixture) -> None:
    root = folder.root
    folder.write("sub/a.yaml", pod_text("p"))
    (root / "sub" / "up").symlink_to("..")
    (root / "again").symlink_to("sub")
    (root / "self.yaml").symlink_to("self.yaml")
    (root / "nowhere.yaml").symlink_to("missing")
    os.mkfifo(root / "pipe.yaml")
    folder.scan()
    assert folder.mirror.facts.keys() == {("Pod", "default", "p")}
    assert {origin.file for origin in folder.mirror.rejected} == {"pipe.yaml", "self.yaml"}


def test_a_folder_that_goes_away_takes_nothing_with_it(tmp_path: Path) -> None:
    folder = Fixture(tmp_path / "manifests")
    assert [type(e) for e in folder.scan()] == [SourceFailed]
    assert folder.scan() == []
    folder.write("a.yaml", pod_text("p"))
    assert [type(e) for e in folder.scan()] == [PodUpserted, SourceSynced]
    folder.root.rename(tmp_path / "elsewhere")
    assert [type(e) for e in folder.scan()] == [SourceStale]
    (tmp_path / "elsewhere").rename(folder.root)
    assert [type(e) for e in folder.scan()] == [SourceSynced]


# ---- any history -----------------------------------------------------------------------------

_NAMES = ("p", "q", "r")
_DOCUMENTS = st.one_of(
    st.tuples(st.just("pod"), st.sampled_from(_NAMES), st.sampled_from("123")),
    st.tuples(st.just("invalid"), st.sampled_from(_NAMES), st.just("")),
    st.tuples(st.sampled_from(("broken", "nameless", "other", "empty")), st.just(""), st.just("")),
)
Spec = tuple[str, str, str]
_PATHS = st.sampled_from(("a.yaml", "b.yaml", "s/a.yaml", "c.json"))
_OPERATIONS: st.SearchStrategy[tuple[str, str, list[Spec]]] = st.one_of(
    st.tuples(st.just("write"), _PATHS, st.lists(_DOCUMENTS, max_size=4)),
    st.tuples(st.just("whole"), _PATHS, st.just([])),
    st.tuples(st.just("remove"), _PATHS, st.just([])),
    st.tuples(st.just("rename"), _PATHS, st.just([])),
    st.tuples(st.just("scan"), st.just(""), st.just([])),
)


def _yaml(spec: Spec) -> str:
    kind, name, version = spec
    return {
        "pod": pod_text(name, version),
        "invalid": f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: [no]}}\n",
        "broken": "a: [\n",
        "nameless": "apiVersion: v1\nkind: Pod\n",
        "other": "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n",
        "empty": "# nothing\n",
    }[kind]


def _json(specs: Iterable[Spec]) -> str:
    items: dict[str, Callable[[str, str], object]] = {
        "pod": lambda n, v: {"metadata": {"name": n, "labels": {"v": f"v{v}"}}},
        "invalid": lambda n, v: {"metadata": {"name": n, "labels": []}},
        "broken": lambda n, v: 5,
        "nameless": lambda n, v: {},
        "other": lambda n, v: {"apiVersion": "v1", "kind": "Secret"},
        "empty": lambda n, v: None,
    }
    listed = [items[kind](name, version) for kind, name, version in specs if kind != "empty"]
    return json.dumps({"apiVersion": "v1", "kind": "PodList", "items": listed})


def _good(specs: list[Spec] | None, before: dict[str, str]) -> dict[str, str]:
    """The rules of the folder, written down once more: name -> version that a file gives."""
    if specs is None:
        return before
    good: dict[str, str] = {}
    for kind, name, version in specs:
        if kind == "pod":
            good.setdefault(name, version)
    unknown = any(kind in ("broken", "nameless") for kind, _, _ in specs)
    invalid = {name for kind, name, _ in specs if kind == "invalid"}
    kept = {n: v for n, v in before.items() if n not in good and (unknown or n in invalid)}
    return good | kept


@settings(max_examples=150, deadline=None)
@given(st.lists(_OPERATIONS, max_size=14))
def test_any_history_ends_in_what_the_folder_says_and_the_last_good(
    operations: list[tuple[str, str, list[Spec]]],
) -> None:
    root = Path(tempfile.mkdtemp(prefix="bristle-t-"))
    try:
        folder = Fixture(root)
        files: dict[str, list[Spec] | None] = {}  # None: unreadable as a whole
        good: dict[str, dict[str, str]] = {}
        for operation, path, specs in [*operations, ("scan", "", [])]:
            if operation == "write":
                text = _json(specs) if path.endswith("json") else joined("", *map(_yaml, specs))
                folder.write(path, text)
                files[path] = specs
            elif operation == "whole":
                folder.write(path, "")
                (root / path).write_bytes(b"\xff")
                files[path] = None
            elif operation == "remove" and path in files:
                (root / path).unlink()
                del files[path]
            elif operation == "rename" and path in files and path != "c.json":
                (root / path).replace(root / "z.yaml")
                files["z.yaml"] = files.pop(path)
            elif operation == "scan":
                folder.source.scan()
                good = {p: _good(s, good.get(p, {})) for p, s in files.items()}
                wanted: dict[str, str] = {}
                for _, versions in sorted(good.items()):
                    wanted = versions | wanted
                found = {name: folder.mirror.version(name) for name in wanted}
                assert found == wanted
                assert {key[2] for key in folder.mirror.facts} == wanted.keys()
                assert folder.mirror.facts == dict(folder.source.facts)
                _check_rejections(files, folder.mirror)
        before = folder.mirror
        folder.restart()
        folder.scan()
        assert folder.mirror.facts == before.facts
        assert folder.mirror.rejected.keys() == before.rejected.keys()
    finally:
        shutil.rmtree(root)


def _check_rejections(files: dict[str, list[Spec] | None], mirror: Mirror) -> None:
    """Everything wrong is rejected at its place; the rest can only be duplicates."""
    wrong: set[Origin] = set()
    for path, specs in files.items():
        if specs is None:
            wrong.add(Origin(path))
            continue
        if path.endswith("json"):
            specs = [spec for spec in specs if spec[0] != "empty"]
        for i, (kind, _, _) in enumerate(specs):
            if kind in ("invalid", "broken", "nameless"):
                is_json = path.endswith("json")
                wrong.add(Origin(path, 1, i) if is_json else Origin(path, i + 1))
    assert wrong <= mirror.rejected.keys()
    for origin in mirror.rejected.keys() - wrong:
        assert "also defined" in mirror.rejected[origin].message


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode()), max_size=5)
)
def test_any_bytes_end_in_rejections_and_nothing_else(contents: list[bytes]) -> None:
    root = Path(tempfile.mkdtemp(prefix="bristle-t-"))
    try:
        folder = Fixture(root)
        folder.write("a.yaml", pod_text("p"))
        folder.scan()
        for data in contents:
            (root / "a.yaml").write_bytes(data)
            (root / "b.json").write_bytes(data)
            folder.scan()
        shutil.rmtree(root)
        root.mkdir()
        folder.scan()
        assert not folder.mirror.facts
        assert not folder.mirror.rejected
    finally:
        shutil.rmtree(root)
