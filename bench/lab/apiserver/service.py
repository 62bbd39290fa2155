# SPDX-License-Identifier: Apache-2.0
"""One connection's requests: authentication, faults, routing, answers, watches, the journal."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from bench.lab.apiserver import forms, listing, routes
from bench.lab.apiserver.auth import Auth
from bench.lab.apiserver.cluster import Cluster
from bench.lab.apiserver.errors import (
    ApiError,
    RouteNotFound,
    forbidden_field,
    invalid,
    overloaded,
)
from bench.lab.apiserver.faults import Fault, Faults, Stream, Streams
from bench.lab.apiserver.forms import Form
from bench.lab.apiserver.handler import Handler
from bench.lab.apiserver.http import BadHttp, Closed, Connection, Request, Response
from bench.lab.apiserver.journal import WRITES, Entry, Journal
from bench.lab.apiserver.routes import Target
from bench.lab.apiserver.store import Resource
from bench.lab.apiserver.streams import Pump
from bench.lab.apiserver.watching import Watch, error_line

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)
GZIP_FROM = 128 * 1024
SENDS_BODY = ("create", "update", "patch")


@dataclass(slots=True)
class Settings:
    """What else can be chosen, also while the server runs.

    watch_list: sendInitialEvents is known (on by default in 1.32, off in many others).
    expired_as: how a watch of forgotten changes is refused: "event" (an ERROR event in a stream,
    what the watch cache does) or "http" (an answer with code 410).
    """

    watch_list: bool = True
    expired_as: str = "event"


class Service:
    """Serves connections for a cluster, each in the thread that calls `serve`.

    changed: a condition for each resource, all on the one lock that guards the cluster.
    """

    def __init__(
        self,
        cluster: Cluster,
        handler: Handler,
        auth: Auth,
        faults: Faults,
        streams: Streams,
        journal: Journal,
        settings: Settings,
        lock: threading.RLock,
        ended: Callable[[], bool],
    ) -> None:
        self.cluster = cluster
        self.lock = lock
        self._handler = handler
        self._auth = auth
        self._faults = faults
        self._streams = streams
        self._journal = journal
        self._settings = settings
        self._ended = ended
        self._conditions: dict[Resource, threading.Condition] = {}
        self._generations: dict[Resource, int] = {}
        cluster.store.listen(lambda resource, _: self._notify(resource))

    # ---- changes -----------------------------------------------------------------------------

    def _condition(self, resource: Resource) -> threading.Condition:
        found = self._conditions.get(resource)
        if found is None:
            found = self._conditions[resource] = threading.Condition(self.lock)
        return found

    def _notify(self, resource: Resource) -> None:
        condition = self._conditions.get(resource)
        if condition is not None:
            condition.notify_all()

    def withdraw(self, resource: Resource) -> None:
        """Ends the watches of a resource, whose kind has changed or gone."""
        self._generations[resource] = self._generations.get(resource, 0) + 1
        self._notify(resource)

    def wake_all(self) -> None:
        """Makes every watch look around."""
        with self.lock:
            for condition in self._conditions.values():
                condition.notify_all()

    # ---- requests ----------------------------------------------------------------------------

    def serve(self, connection: Connection) -> None:
        """Answers requests until the connection ends."""
        while not self._ended():
            try:
                request = connection.read()
            except BadHttp as error:
                text = [f"{error.text}\n".encode()]
                response = Response(error.code, text, "text/plain; charset=utf-8")
                connection.respond(None, response, keep=False)
                connection.linger()
                return
            except ApiError as error:  # too large: what follows cannot be told apart
                connection.respond(None, _failure(error), keep=False)
                connection.linger()
                return
            if not self._one(connection, request):
                return

    def _one(self, connection: Connection, request: Request) -> bool:
        """Answers one request; False: the connection must end."""
        entry = self._begin(request)
        before = connection.sent
        faults = self._faults.take(entry.verb, entry.resource, request.agent, request.target)
        try:
            if any(fault.what == "drop" for fault in faults):
                return False
            response = self._respond(connection, request, entry, faults)
            if response is None or any(fault.what == "lose" for fault in faults):
                return False
            entry.code = response.code
            connection.respond(request, _compressed(request, response), keep=request.keep)
            return request.keep
        finally:
            entry.sent = connection.sent - before

    def _begin(self, request: Request) -> Entry:
        target: Target | None = None
        try:
            with self.lock:
                target = self._route(request)
        except (RouteNotFound, ApiError):
            pass  # answered in its turn
        entry = Entry(
            number=0,
            time=time.time(),
            user="",
            agent=request.agent,
            verb=target.verb if target else request.method.lower(),
            method=request.method,
            path=request.path,
            query=request.query,
            resource=target.resource if target else "",
            namespace=target.namespace if target else "",
            name=target.name if target else "",
        )
        if entry.verb in WRITES:
            entry.body = request.body[:100_000].decode(errors="replace")
        self._journal.add(entry)
        return entry

    def _route(self, request: Request) -> Target | None:
        return routes.route(self.cluster.registry, request.method, request.path, request.query)

    def _respond(
        self, connection: Connection, request: Request, entry: Entry, faults: list[Fault]
    ) -> Response | None:
        """The answer; None if a stream was served."""
        try:
            for fault in faults:
                if fault.what == "delay":
                    self._rest(fault.seconds)
            for fault in faults:
                if fault.what == "answer":
                    raise overloaded(fault.code, fault.retry_seconds)
            entry.user = self._auth.user(request.headers)
            with self.lock:
                target = self._route(request)
            if target is None:
                return self._page(request, entry.user)
            self._auth.check(entry.user, target)
            if target.verb == "watch":
                return self._watch(connection, request, target, entry)
            return self._resource(request, target, entry)
        except RouteNotFound:
            text = [b"404 page not found\n"]
            return Response(404, text, "text/plain; charset=utf-8")
        except ApiError as error:
            return _failure(error)
        except (Closed, OSError):
            raise
        except Exception as error:
            _log.exception("request %s %s failed", request.method, request.target)
            return _failure(ApiError(500, "InternalError", f"Internal error occurred: {error!r}"))

    def _rest(self, seconds: float) -> None:
        """Waits, unless the server ends."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._ended():
            time.sleep(min(left, 0.05))

    def _page(self, request: Request, user: str) -> Response:
        self._auth.check_path(user, request.path)
        if request.method not in ("GET", "HEAD"):
            raise RouteNotFound(request.path)
        with self.lock:
            found = routes.page(self.cluster.registry, request.path)
        if isinstance(found, str):
            return Response(200, [found.encode()], "text/plain; charset=utf-8")
        forms.accepted(request.headers.get("accept", ""))
        return Response(200, [_encode(found) + b"\n"])

    def _resource(self, request: Request, target: Target, entry: Entry) -> Response:
        form = self._form(request, target)
        if target.verb in SENDS_BODY and not request.body:
            raise ApiError(400, "BadRequest", "unexpected end of JSON input: the body is empty")

        def may(verb: str) -> None:
            self._auth.check(entry.user, target, verb)

        with self.lock:
            answer = self._handler.answer(request, target, form, may)
        entry.changed = answer.changed
        return answer.response

    def _form(self, request: Request, target: Target) -> Form:
        accept = request.headers.get("accept", "")
        return Form(target.kind, partial=forms.accepted(accept) == "partial")

    # ---- watches -----------------------------------------------------------------------------

    def _watch(
        self, connection: Connection, request: Request, target: Target, entry: Entry
    ) -> Response | None:
        kind = target.kind
        query = listing.parse(kind, request.query)
        if query.initial is not None and not self._settings.watch_list:
            text = (
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is "
                "enabled"
            )
            problem = forbidden_field("sendInitialEvents", text)
            raise invalid("meta.k8s.io", "ListOptions", "", [problem])
        form = self._form(request, target)
        with self.lock:
            changed = self._condition(kind.resource)
            generation = self._generations.get(kind.resource, 0)
            watch = Watch(self.cluster, kind, target.namespace, query, form)
            try:
                first = watch.begin()
            except ApiError as error:
                if self._settings.expired_as == "http":
                    raise
                return Response(200, [error_line(error)])

        def wake() -> None:
            with changed:
                changed.notify_all()

        def gone() -> bool:
            return self._generations.get(kind.resource, 0) != generation

        stream = Stream(target.resource, target.namespace, request.agent, connection, wake)
        entry.code = 200
        self._streams.add(stream)
        try:
            settings = self._streams.settings
            Pump(connection, watch, query, stream, settings, changed, gone).run(first)
        finally:
            self._streams.remove(stream)
        return None


def _failure(error: ApiError) -> Response:
    body = [_encode(error.status()) + b"\n"]
    return Response(error.code, body, headers=error.headers)


def _compressed(request: Request, response: Response) -> Response:
    """Gzip for large answers, if asked for."""
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return response
    body = b"".join(response.body)
    if len(body) < GZIP_FROM:
        return Response(
            response.code, [body], response.content_type, response.headers, response.warnings
        )
    headers = {**response.headers, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    packed = gzip.compress(body, compresslevel=1)
    return Response(response.code, [packed], response.content_type, headers, response.warnings)
