"""Requests, as a user calls them: serve and request.

As in `raskid.client.topics`, what ends in `_nowait` gives futures, and the blocking and asynchronous calls are these
and a wait.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from raskid.client.checks import check_callable, check_name, check_seconds
from raskid.client.connection import Connection, error_of
from raskid.client.futures import Future
from raskid.client.loops import is_coroutine
from raskid.client.waiting import result_of
from raskid.core.effects import (
    CallDone,
    Effect,
    Invoke,
    InvokeCancelled,
)
from raskid.core.events import (
    CancelRequest,
    Reply,
    Request,
    Serve,
    Unserve,
)
from raskid.model import errors
from raskid.model.errors import (
    RaskidError,
    RemoteError,
)
from raskid.model.ids import RequestId
from raskid.model.topics import SERVICES, list_name
from raskid.protocol.messages import (
    ROLE_MESSAGE,
    DeleteRecord,
    PutRecord,
)
from raskid.protocol.reactions import Provider
from raskid.protocol.values import decode_body, decode_value, encode_body, encode_value

if TYPE_CHECKING:
    import asyncio

#: How long `serve` and `unserve` wait for the hub.
SERVE_S = 10.0
#: The machines end a request at its limit; the wait for it is longer, so that it is they who say why.
GRACE_S = 10.0


class Requests(Connection):
    """The part of a session that asks and answers."""

    def _effects(self) -> dict[type[Effect], Callable[[Any], None]]:
        return {
            **super()._effects(),
            CallDone: self._on_call_done,
            Invoke: self._on_invoke,
            InvokeCancelled: self._on_invoke_cancelled,
        }

    def _on_call_done(self, effect: CallDone) -> None:
        future = self._requests.pop(effect.request, None)
        if future is None:
            return
        try:
            if effect.ok:
                future.resolve_with(decode_value(effect.body))
            elif effect.error:
                future.fail_with(error_of(effect.error, effect.text))
            else:
                future.fail_with(_error_in(effect.body))
        except Exception as error:
            # The answer cannot be read: that is the outcome.
            error.add_note("(while the answer to a request was read)")
            future.fail_with(error)

    # ── answering ──
    # `_invoked` holds the calls of this process's services that have no answer yet and that somebody still waits for:
    # None for one that stands in line, or whose function runs, else what cancels its coroutine. The lock guards it.

    def _on_invoke(self, effect: Invoke) -> None:
        handler = self._handlers.get(effect.service)
        if handler is None:
            self._reply_error(effect.request, LookupError(f"{effect.service!r} is no longer served here"))
        else:
            self._invoked[effect.request] = None
            self.engine.call_handler(self._run_handler, effect, handler)

    def _on_invoke_cancelled(self, effect: InvokeCancelled) -> None:
        cancel = self._invoked.pop(effect.request, None)
        if cancel is not None:
            cancel()

    def _run_handler(self, effect: Invoke, handler: Callable[..., Any]) -> None:
        request = effect.request
        if request not in self._invoked:
            # It was cancelled while it stood in line.
            return
        try:
            args, fields = decode_body(effect.body)
            value = handler(*args, **fields)
            if is_coroutine(value):
                engine = self.engine
                loop = engine.loop
                if loop is not None and engine.serves_this_thread():
                    task = loop.create_task(self._finish_handler(request, value))
                    task.add_done_callback(partial(self._handler_ended, request, value))
                    return
                import asyncio

                with engine.waiting():
                    value = asyncio.run(self._cancellable(request, value))
            self._reply(request, encode_value(value))
        except BaseException as error:
            # SystemExit, too: it ends no more than the handler, and whoever asked is to hear of it.
            self._reply_error(request, error)
            if isinstance(error, KeyboardInterrupt):
                raise

    async def _cancellable(self, request: RequestId, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a handler's coroutine so that the caller's `CancelRequest` reaches it."""
        import asyncio

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

        with self.engine.lock:
            wanted = request in self._invoked
            if wanted:
                # This also keeps the task: an event loop holds its tasks only weakly.
                self._invoked[request] = cancel
        if not wanted:
            coroutine.close()
            raise asyncio.CancelledError
        return await coroutine

    async def _finish_handler(self, request: RequestId, coroutine: Coroutine[Any, Any, Any]) -> None:
        import asyncio

        try:
            body = encode_value(await self._cancellable(request, coroutine))
        except BaseException as error:
            self._reply_error(request, error)
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
                raise
        else:
            self._reply(request, body)

    def _handler_ended(self, request: RequestId, coroutine: Coroutine[Any, Any, Any], task: asyncio.Task[None]) -> None:
        """A handler's coroutine that was cancelled before its first step has not answered."""
        if task.cancelled() and request in self._invoked:
            import asyncio

            coroutine.close()
            self._reply_error(request, asyncio.CancelledError("cancelled before it began"))

    def _reply(self, request: RequestId, body: bytes, ok: bool = True) -> None:
        with self.engine.lock:
            self._invoked.pop(request, None)
        self.engine.tell(Reply(request, ok, body))

    def _reply_error(self, request: RequestId, error: BaseException) -> None:
        try:
            text = str(error)
        except Exception as second:
            text = f"(its text cannot be had: {type(second).__name__})"
        parts = (type(error).__name__, text, "".join(traceback.format_exception(error)))
        # Text of the user's may hold what UTF-8 cannot write; the answer has to go out all the same.
        self._reply(request, encode_value(tuple(part.encode(errors="replace").decode() for part in parts)), ok=False)

    # ── serving ──

    def serve(self, name: str, handler: Callable[..., Any]) -> None:
        """Answer requests of that name: `handler(*args, **fields)` gives the answer, or raises.

        Handlers run one at a time, on the session's callback threads or in its event loop; one may be a coroutine
        function. While a callback or handler waits for something (a request of its own, say), the handlers of other
        requests run at the same time on threads of their own, 64 at most; further ones stand in line. A request that
        its caller gives up is left out when it has not begun, and cancelled when it is a coroutine.

        Raises:
            TypeError, TopicNameError: An argument cannot be used.
            WaitTimeout: The hub did not answer.
        """
        future = self.serve_nowait(name, handler)
        try:
            result_of(future, SERVE_S, not_served(name))
        except BaseException:
            self.give_up_serving(name, handler)
            raise

    def serve_nowait(self, name: str, handler: Callable[..., Any]) -> Future:
        """As `serve`, without waiting: the future is done when others can find the service."""
        name = check_name(name)
        check_callable("handler", handler)
        self.require(ROLE_MESSAGE, "serving")
        self._handlers[name] = handler
        self.engine.send(Serve(name))
        value = msgspec.msgpack.encode(Provider(self.peer.own_ref))
        return self.ask(PutRecord(self.request_id(), list_name(SERVICES, name), self.peer.identity.peer, value))

    def give_up_serving(self, name: str, handler: Callable[..., Any]) -> None:
        """Forget a service that others could not be told of."""
        if self._handlers.get(name) is handler:
            # The hub may have it by now, and would send others here.
            with contextlib.suppress(RaskidError):
                self.unserve_nowait(name)

    def unserve(self, name: str) -> None:
        """Answer them no longer. Requests that have begun are still answered."""
        result_of(self.unserve_nowait(name), SERVE_S, f"the hub did not confirm the end of service {name!r}")

    def unserve_nowait(self, name: str) -> Future:
        """As `unserve`, without waiting: the future is done when others can no longer find the service."""
        name = check_name(name)
        future = self.ask(DeleteRecord(self.request_id(), list_name(SERVICES, name), self.peer.identity.peer))
        self._handlers.pop(name, None)
        self.engine.tell(Unserve(name))
        return future

    # ── asking ──

    def request(self, name: str, /, *args: Any, timeout: float = 10.0, **fields: Any) -> Any:
        """Ask whoever serves `name`, and return the answer.

        Args:
            name: The service's name.
            args: Given to the handler.
            timeout: How long the answer may take, in seconds.
            fields: Given to the handler by name.

        Raises:
            RemoteError: The handler raised; `.remote` holds its traceback.
            NoSuchService: Nobody served the name within `timeout` seconds.
            WaitTimeout: The answer did not come in time.
            PeerLost: The peer that was to answer is gone.
            TypeError, ValueError: An argument of this call cannot be used, or cannot be sent.
        """
        future = self.request_nowait(name, *args, timeout=timeout, **fields)
        return result_of(future, timeout + GRACE_S, f"a request for {name!r} had no outcome")

    def request_nowait(self, name: str, /, *args: Any, timeout: float = 10.0, **fields: Any) -> Future:
        """As `request`, as a future; cancelling it tells the other side."""
        if type(name) is not str or name not in self._calls.providers:
            # Not asked before.
            name = check_name(name)
            self.require(ROLE_MESSAGE, "asking a service")
        timeout = check_seconds("timeout", timeout)
        engine = self.engine
        body = encode_body(args, fields)
        future = _RequestFuture(engine)
        future.service = name
        future.pending = self._requests
        with engine.lock:
            self.still_alive()
            identifier = future.request = self.request_id()
            self._requests[identifier] = future
            engine.pass_on()
            self.driver.handle(Request(identifier, name, body, self.driver.clock() + timeout))
        engine.prompt()
        return future


class _RequestFuture(Future):
    request: RequestId = RequestId(0)
    service: str
    #: Where it is registered until it has its outcome.
    pending: dict[int, Future]

    def _what(self) -> str:
        return f"a request for {self.service!r}"

    def cancel(self) -> bool:
        """No longer wait for the answer, and tell the other side so. Returns False when there is one already."""
        engine = self._engine
        with engine.lock:
            if not self.done():
                self.pending.pop(self.request, None)
                self.fail_with(concurrent.futures.CancelledError())
        if self.cancelled():
            engine.tell(CancelRequest(self.request))
            # Another thread may be waiting for it.
            engine.rouse()
        return self.cancelled()


def _error_in(body: bytes) -> Exception:
    """What an answer that is an error says."""
    kind, text, remote = decode_value(body)
    if kind == "NoSuchService" and not remote:
        return errors.NoSuchService(text)
    return RemoteError(f"{kind}: {text}", kind, remote)


def not_served(name: str) -> str:
    """What to say when the hub is silent."""
    return f"the hub did not confirm service {name!r}"
