# SPDX-License-Identifier: Apache-2.0
"""What a test can do to the server and ask of it; the same by a control socket (client.py).

Arguments and results are what JSON can say. Objects that come and go here pass no authentication,
no fault and no journal.
"""

from __future__ import annotations

import base64
import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from bench.lab.apiserver import codec, patch
from bench.lab.apiserver.auth import Auth, Denial
from bench.lab.apiserver.cluster import Cluster
from bench.lab.apiserver.codec import Options
from bench.lab.apiserver.deletion import DeleteOptions, Remover
from bench.lab.apiserver.errors import Object, bad_request
from bench.lab.apiserver.faults import Action, Fault, Faults, Streams
from bench.lab.apiserver.journal import Journal
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.selectors import Selector, parse_labels
from bench.lab.apiserver.service import Settings

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
QUIET = Options("Ignore", manager="lab")


class Operations:
    """Objects, faults, streams, permissions and the journal of one server.

    Methods on objects raise ApiError like requests do. kind: `Pod`, or `events.k8s.io/v1/Event`
    where a name alone is not enough.
    """

    def __init__(
        self,
        cluster: Cluster,
        remover: Remover,
        auth: Auth,
        faults: Faults,
        streams: Streams,
        journal: Journal,
        settings: Settings,
        lock: threading.RLock,
    ) -> None:
        self._cluster = cluster
        self._remover = remover
        self._auth = auth
        self._faults = faults
        self._streams = streams
        self._journal = journal
        self._settings = settings
        self._guard = lock

    # ---- coming and going --------------------------------------------------------------------

    def stop(self, reset: bool = False) -> None:
        """Ends all connections and refuses new ones; what is stored stays."""
        raise NotImplementedError

    def start(self) -> None:
        """Listens again on the same port."""
        raise NotImplementedError

    def drop_connections(self, reset: bool = False) -> None:
        """Ends all connections; new ones are accepted."""
        raise NotImplementedError

    # ---- objects -----------------------------------------------------------------------------

    def create(self, item: Mapping[str, Any]) -> Object:
        """Creates an object as a request would, in the namespace `default` if it names none."""
        with self._guard:
            kind = self._kind_of(item)
            decoded = codec.read(kind, copy.deepcopy(dict(item)), QUIET, [])
            namespace = decoded.item["metadata"].get("namespace") or "default"
            made = self._cluster.create(kind, namespace, decoded.item, QUIET)
            return kind.document(made.record.object)

    def load(self, items: Sequence[Mapping[str, Any]]) -> int:
        """Adds or replaces objects with status and all, without checks; how many.

        For what controllers and kubelets would have written, and for very many objects. Namespaces
        need not be there.
        """
        with self._guard:
            for kind, group in self._by_kind(items):
                self._cluster.load(kind, iter(group))
        return len(items)

    def _by_kind(self, items: Iterable[Mapping[str, Any]]) -> Iterable[tuple[Kind, list[Object]]]:
        """Runs of objects of one kind, in stored form."""
        current: Kind | None = None
        run: list[Object] = []
        for item in items:
            kind = self._kind_of(item)
            if current is not None and kind is not current:
                yield current, run
                run = []
            current = kind
            # The quickest way to a copy of its own.
            content: Object = _decode(_encode(item))
            del content["kind"], content["apiVersion"]
            if kind.namespaced:
                content["metadata"].setdefault("namespace", "default")
            run.append(kind.strategy.to_storage(content))
        if current is not None:
            yield current, run

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """An object. Raises ApiError 404."""
        with self._guard:
            found = self._kind(kind)
            record = self._cluster.get(found, namespace or "default", name)
            return copy.deepcopy(found.document(record.object))

    def objects(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        """Objects, in all namespaces by default. selector: for labels."""
        with self._guard:
            found = self._kind(kind)
            wanted = Selector(parse_labels(selector))
            prefix = f"{namespace}/" if namespace else ""
            records = self._cluster.store.collection(found.resource).range(prefix)
            return [
                copy.deepcopy(found.document(record.object))
                for record in records
                if wanted.matches(record.labels, lambda _: "")
            ]

    def patch(
        self,
        kind: str,
        name: str,
        change: Mapping[str, Any],
        namespace: str = "",
        status: bool = False,
    ) -> Object:
        """Lays a merge patch over an object, or over its status. Raises ApiError."""
        with self._guard:
            found = self._kind(kind)
            old = self._cluster.get(found, namespace or "default", name)
            patched = patch.merge_patch(found.document(old.object), dict(change))
            item = codec.read(found, patched, QUIET, []).item
            part = "status" if status else ""
            made = self._cluster.update(found, old.namespace, name, item, QUIET, part)
            return copy.deepcopy(found.document(made.record.object))

    def delete(self, kind: str, name: str, namespace: str = "", grace: int | None = None) -> None:
        """Deletes an object as a request would. Raises ApiError 404."""
        with self._guard:
            options = DeleteOptions(grace)
            self._remover.delete(self._kind(kind), namespace or "default", name, options)

    def _kind_of(self, item: Mapping[str, Any]) -> Kind:
        return self._kind(f"{item.get('apiVersion')}/{item.get('kind')}")

    def _kind(self, name: str) -> Kind:
        version, _, short = name.rpartition("/")
        for kind in self._cluster.registry:
            if kind.name == short and version in ("", kind.api_version):
                return kind
        raise bad_request(f'no matches for kind "{short}" in version "{version}"')

    # ---- versions ----------------------------------------------------------------------------

    def revision(self) -> int:
        """The version of the latest change."""
        with self._guard:
            return self._cluster.store.revision

    def compact(self, revision: int | None = None) -> int:
        """Forgets changes up to a version, by default all; which version that was."""
        with self._guard:
            store = self._cluster.store
            store.compact(store.revision if revision is None else revision)
            return store.compacted

    def unchanged_writes(self) -> int:
        """How many updates and patches left an object as it was."""
        with self._guard:
            return self._cluster.unchanged_writes

    # ---- permissions -------------------------------------------------------------------------

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        """Makes these {token: user} the only tokens; others get 401."""
        self._auth.set_tokens(tokens)

    def deny(self, user: str, verb: str = "*", resource: str = "*", namespace: str = "*") -> None:
        """Forbids a user something ("*": all); resource may be `nodes/status`."""
        self._auth.deny(Denial(user, verb, resource, namespace))

    def allow_all_again(self) -> None:
        """Takes back every denial."""
        self._auth.allow_all_again()

    def set_rules(self, user: str, rules: Sequence[Mapping[str, Sequence[str]]] | None) -> None:
        """Lets a user do only what these rules of a ClusterRole grant; None: everything."""
        self._auth.set_rules(user, rules)

    # ---- faults of requests ------------------------------------------------------------------

    def fail_next(
        self,
        count: int | None = 1,
        code: int = 503,
        retry_after: int | None = None,
        verb: str = "",
        resource: str = "",
        agent: str = "",
        path: str = "",
    ) -> None:
        """Answers the next requests (None: all) that fit with an error.

        agent, path: a part of it; path includes the query. retry_after: seconds, None for none.
        """
        self._faults.add(
            Fault(
                "answer",
                count,
                code,
                retry_after,
                verb=verb,
                resource=resource,
                agent=agent,
                path=path,
            )
        )

    def drop_next(
        self,
        count: int | None = 1,
        after: bool = False,
        verb: str = "",
        resource: str = "",
        agent: str = "",
        path: str = "",
    ) -> None:
        """Closes the connection instead of answering. after: once the request has been done."""
        what = "lose" if after else "drop"
        self._faults.add(Fault(what, count, verb=verb, resource=resource, agent=agent, path=path))

    def delay(
        self,
        seconds: float,
        count: int | None = None,
        verb: str = "",
        resource: str = "",
        agent: str = "",
        path: str = "",
    ) -> None:
        """Lets requests that fit wait before anything is done for them."""
        self._faults.add(
            Fault(
                "delay",
                count,
                seconds=seconds,
                verb=verb,
                resource=resource,
                agent=agent,
                path=path,
            )
        )

    def clear_faults(self) -> None:
        """Takes back faults of requests, and slow or short streams."""
        self._faults.clear()
        self._streams.settings.rate = 0
        self._streams.settings.longest = 0.0
        self._streams.settings.copies = 1

    # ---- streams -----------------------------------------------------------------------------

    def watches(self, resource: str = "", agent: str = "") -> int:
        """How many watches are being served. agent: a part of the User-Agent."""
        return len(self._streams.find(resource, agent))

    def break_watches(self, how: str = "break", resource: str = "", agent: str = "") -> int:
        """Ends watches in the middle of a line; how many.

        how: "break" (connection closed), "reset" (by a TCP reset), "cut" (a proper end of the
        answer, but half a line).
        """
        if how not in ("break", "reset", "cut"):
            raise bad_request(f"no way to break a watch: {how!r}")
        return self._streams.act(Action(how), resource, agent)

    def end_watches(self, resource: str = "", agent: str = "") -> int:
        """Ends watches properly; how many."""
        return self._streams.act(Action("end"), resource, agent)

    def expire_watches(self, resource: str = "", agent: str = "") -> int:
        """Ends watches with an ERROR event, code 410; how many."""
        return self._streams.act(Action("expire"), resource, agent)

    def stall_watches(self, seconds: float, resource: str = "", agent: str = "") -> int:
        """Lets watches send nothing for so long; what happens meanwhile comes afterwards."""
        return self._streams.act(Action("stall", seconds=seconds), resource, agent)

    def send_bookmarks(self, copies: int = 1, resource: str = "", agent: str = "") -> int:
        """Sends bookmarks now, also to watches that did not ask for any."""
        return self._streams.act(Action("bookmark", copies=copies), resource, agent)

    def send_raw(self, data: str, resource: str = "", agent: str = "") -> int:
        """Puts bytes (given in base64) into streams."""
        action = Action("raw", base64.b64decode(data))
        return self._streams.act(action, resource, agent)

    def slow_watches(self, bytes_per_second: int) -> None:
        """Lets streams send so slowly and in small pieces; 0: at full speed again."""
        self._streams.settings.rate = bytes_per_second

    def shorten_watches(self, seconds: float) -> None:
        """Ends watches that begin from now on after so long; 0: when they want."""
        self._streams.settings.longest = seconds

    def set_bookmarks(self, seconds: float, copies: int = 1) -> None:
        """How often watches that begin from now on get bookmarks, and how many at a time."""
        self._streams.settings.bookmark_seconds = seconds
        self._streams.settings.copies = copies

    def set_expired(self, how: str) -> None:
        """How watches from forgotten versions are refused: "event" or "http"."""
        if how not in ("event", "http"):
            raise bad_request(f"no way to refuse a watch: {how!r}")
        self._settings.expired_as = how

    def set_watch_list(self, known: bool) -> None:
        """Whether sendInitialEvents is known."""
        self._settings.watch_list = known

    # ---- journal -----------------------------------------------------------------------------

    def requests(
        self, agent: str = "", verb: str = "", resource: str = "", after: int = 0
    ) -> list[Object]:
        """Requests, oldest first, as objects with the fields of journal.Entry."""
        found = self._journal.entries(agent=agent, verb=verb, resource=resource, after=after)
        return [entry.plain() for entry in found]

    def counts(self) -> list[tuple[str, str, str, int]]:
        """How many requests there were: (user agent, verb, resource, number)."""
        return [(*key, number) for key, number in sorted(self._journal.counts().items())]

    def count(self, agent: str = "", verb: str = "", resource: str = "") -> int:
        """How many requests fit. agent: a part of the User-Agent."""
        return sum(
            number
            for (who, what, of), number in self._journal.counts().items()
            if agent in who and verb in ("", what) and resource in ("", of)
        )

    def useless_writes(self, agent: str = "", after: int = 0) -> list[Object]:
        """Writes that succeeded and changed nothing."""
        return [entry.plain() for entry in self._journal.useless(agent=agent, after=after)]

    def clear_journal(self) -> None:
        """Forgets all requests."""
        self._journal.clear()
