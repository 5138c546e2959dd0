"""Reactions and links, as a user calls them: op, react, link, reactions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raskid.client.checks import check_name
from raskid.client.declarations import check_fits
from raskid.client.engine import fresh
from raskid.client.futures import Future
from raskid.client.handles import SETTLE_S, Failure, ReactionHandle, reaction_facts
from raskid.client.messages import Message, Subscription
from raskid.client.reactions import Draft, Op
from raskid.client.topics import FOLLOW_S, Topics
from raskid.client.waiting import Steps, take_steps, take_steps_in
from raskid.core.effects import Effect, ReactionReported
from raskid.core.events import Subscribed
from raskid.model.errors import NotAllowed, RaskidError, RemoteProtocolError
from raskid.model.ids import CodeId, RequestId
from raskid.model.operations import FORWARD, Operation
from raskid.model.topics import CELLS, REACTIONS, list_name
from raskid.protocol.messages import ROLE_EXECUTE, Code, DeleteRecord, PutCode, ReactionFailed, ReactionStopped, Record
from raskid.protocol.reactions import BLOCK, decode_reaction
from raskid.services.outgoing import say_failure


class Reacting(Topics):
    """The part of a session that installs reactions."""

    #: Those of this session that are installed, by their names in the lists.
    reaction_handles: dict[RequestId, ReactionHandle]

    def _effects(self) -> dict[type[Effect], Callable[[Any], None]]:
        self.reaction_handles = {}
        #: Code objects that the head has from this session.
        self._codes_put: set[CodeId] = set()
        return {**super()._effects(), ReactionReported: self._on_reaction_reported}

    def _on_reaction_reported(self, effect: ReactionReported) -> None:
        message: Any = effect.message
        handle = self.reaction_handles.get(message.subscription)
        if isinstance(message, ReactionFailed):
            if handle is not None:
                handle.on_failed(effect.peer, message)
            elif not effect.peer:
                self.engine.call_soon(say_failure, message)
        elif isinstance(message, ReactionStopped) and handle is not None:
            handle.on_stopped(effect.peer, message)

    def _fail(self, error: RaskidError) -> None:
        super()._fail(error)
        with self.engine.lock:
            for handle in list(self.reaction_handles.values()):
                handle.closing = handle.closed = True
            self.reaction_handles.clear()

    def is_used(self) -> bool:
        """As for every session, and failures may be told of."""
        return super().is_used() or any(handle.has_callback for handle in list(self.reaction_handles.values()))

    def run_for_others(self) -> None:
        """This process is there to run the code of others: its modules are theirs, as in a runner."""
        self._outgoing.reactor.replace_modules()

    # ── what drafts need ──

    def code_of(self, function: Callable[..., Any]) -> Code:
        """The code object of a function, which this process need not load itself."""
        self.require(ROLE_EXECUTE, "a reaction with code")
        code = self._book.code_of(function)
        with self.engine.lock:
            self._messaging.add_code(code)
            self._outgoing.reactor.know(code.code, function)
        return code

    def codes_to_put(self, ops: Sequence[Op]) -> list[PutCode]:
        """Requests that put code objects to the head which it has not had from here."""
        new = {op.code.code: op.code for op in ops if op.code.code not in self._codes_put}
        return [PutCode(self.request_id(), code) for code in new.values()]

    def codes_were_put(self, ops: Sequence[Op]) -> None:
        """The head has them."""
        self._codes_put.update(op.code.code for op in ops)

    def ask_quietly(self, message: Any) -> Future:
        """As `ask`, from a callback of the machines: a session that is over fails the future instead of raising."""
        try:
            return self.ask(message)
        except RaskidError as error:
            future = Future(self.engine)
            future.fail_with(fresh(error))
            return future

    def add_reaction(self, handle: ReactionHandle, callback: Callable[[Message], Any] | None, capacity: int) -> None:
        """Expect what a reaction delivers, and what is told of it."""
        with self.engine.lock:
            self.still_alive()
            self.reaction_handles[handle.id] = handle
            if handle.delivers:
                subscription = Subscription(
                    self, handle.id, handle.topic, capacity, callback, acks=handle.acks, shares=handle.shares
                )
                handle.subscription = self.subscriptions[handle.id] = subscription
                subscription.handle = handle
                self.driver.handle(Subscribed(handle.id, capacity))

    def give_up_reaction(self, handle: ReactionHandle) -> None:
        """A reaction did not come about."""
        if not handle.closed:
            self.ask_quietly(DeleteRecord(self.request_id(), list_name(REACTIONS, handle.topic), str(handle.id)))
            handle.ended()

    # ── by the user ──

    def op(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Op:
        """A function with bound arguments, to be run by reactions: ``rk.react(topic, rk.op(downsample, 10))``.

        It is called as `function(*values, *args, **fields, **kwargs)`, with the values and fields of each message.
        The same function is sent once; its arguments are part of the reaction, and are what messages carry.

        Raises:
            TypeError: It cannot be called, or cannot be pickled; the text names the part.
            NotAllowed: The session's role is lower than "execute".
        """
        return Op(self, function, args, kwargs)

    def react(
        self, topic: str, /, *operations: Any, action: Any = None, done: Callable[[Message], Any] | None = None,
        priority: int = 0, value: Any = None, limit: int = 0, one_of: str = "", choose_by: Any = None,
        ack: bool = False, place: str = "publisher", seconds: float = 10.0, cleanup: Any = None,
        permanent: bool = False, on_error: Callable[[Failure], Any] | None = None, timeout: float = SETTLE_S,
    ) -> Any:  # fmt: skip
        """Do something with each message of a topic, in the process that publishes it.

        Without `action` and `done` this gives a `Draft`, whose calls add operations, and of which the last says where
        messages go and installs it: ``rk.react("mesh", rk.op(downsample, 10)).forward("mesh/small")``. With one of them
        the reaction is installed, and this gives its `ReactionHandle`: `action` runs at the publisher, `done` here,
        with what `action` gave.

        Args:
            topic: The topic's name.
            operations: Functions, or what `op` gives; the first of the chain.
            action: The same, for one function.
            done: Called here with each `Message` that comes out.
            priority: Reactions of a topic run by falling priority.
            value: What the owner says of itself; shown with the reaction, and a member's choice may go by it.
            limit: The reaction is over, at each publisher, after so many messages; 0: never.
            one_of: A class. Of its members one gets each message,
            choose_by: chosen "round_robin", by "random", "least_loaded", the least "by_value" of the members, or the
                least that a function gives, called at the publisher with the member's value and the message.
            ack: A message goes to another member of the class unless the one that got it was through with it.
            place: "publisher", or "helper": a process beside it, for operations that take long.
            seconds: How long a function may take for one message.
            cleanup: A function, called at each publisher when the reaction is removed.
            permanent: It stays when this process goes.
            on_error: Called here with each `Failure`; otherwise failures are printed.
            timeout: How long to wait for publishers to acknowledge it, in seconds.

        Raises:
            TypeError, ValueError: An argument cannot be used; the text says which and why.
        """
        draft = Draft(
            self, topic, priority=priority, value=value, limit=limit, one_of=one_of, choose_by=choose_by, ack=ack,
            place=place, seconds=seconds, cleanup=cleanup, permanent=permanent, on_error=on_error, timeout=timeout,
            in_loop=self.engine.serves_this_thread(),
        )  # fmt: skip
        draft.add_all((*operations, *(() if action is None else (action,))))
        if done is not None:
            return draft.done(done)
        return draft if action is None else draft.run()

    def link(
        self, source: Any, target: Any = None, *operations: Any, cell: str | None = None, permanent: bool = False,
        timeout: float = SETTLE_S,
    ) -> Any:  # fmt: skip
        """Connect an output to an input: every value of `source` goes to `target` as well.

        Either may be anywhere, and may come later than the link. The values go straight from whoever has them to
        whoever reads them. What does not fit what the target's handle declares is kept back and reported here. A target
        that is named, or declared later, is checked by its readers only, who leave out what does not fit.

        Args:
            source: A channel or cell, or the name of one, or of a topic.
            target: A channel or cell, or the name of a channel or topic. A name does not stand for a cell: that is
            cell: the name of a cell that is to be set, instead of a target: ``rk.link("celsius", cell="last")``.
            operations: Functions to apply on the way, as for `react`.
            permanent: It stays when this process goes.
            timeout: As for `react`.

        Returns:
            A `ReactionHandle`; closing it takes the link away.

        Raises:
            ValueError: It would connect something to itself, or what the two declare differs, or the target is the name
                of a cell that has a value or a declaration.
        """
        begin = _topic_of("source", source)
        if cell is None:
            end = _topic_of("target", target)
        else:
            end = check_name(cell)
            if isinstance(target, str) or hasattr(target, "topic"):
                raise TypeError(f"a link has one target: give either {target!r:.60} or cell={cell!r}")
            # The first function stands where the target would.
            operations = operations if target is None else (target, *operations)
        if begin == end:
            raise ValueError(f"a link from {begin!r} to itself would never end; name another target")
        if not operations:
            check_fits(source, target)
        draft = self.react(begin, *operations, permanent=permanent, timeout=timeout)
        if cell is not None:
            return draft.set(cell)
        if isinstance(target, str):
            steps = self._link_to_name(draft, begin, end)
            return take_steps_in(steps) if self.engine.serves_this_thread() else take_steps(steps)
        return draft.set(target) if hasattr(target, "address") else draft.forward(target)

    def reaction(self, topic: str, identifier: int | str) -> ReactionHandle:
        """A permanent reaction, whoever has installed it, to be suspended, resumed and removed with.

        Failures of it are told to whoever installed it, if that is still there.

        Args:
            topic: The topic's name.
            identifier: The reaction's "id", as `reactions` has it.

        Raises:
            LookupError: The topic has no such reaction.
            NotAllowed: It is not permanent, and somebody else's.
        """
        return take_steps(self.finding_reaction(topic, identifier))

    def finding_reaction(self, topic: str, identifier: int | str) -> Steps[ReactionHandle]:
        """The steps of `reaction`."""
        topic, name = check_name(topic), str(identifier)
        records = yield from self._listing_records(topic)
        found = next((record for record in records if record.record == name), None)
        if found is None:
            raise LookupError(
                f"there is no reaction {name!r:.60} on {topic!r}; rk.reactions({topic!r}) gives their ids"
            )
        number = RequestId(int(name)) if name.isascii() and name.isdigit() else RequestId(-1)
        own = self.reaction_handles.get(number)
        if own is not None:
            return own
        if found.owner:
            raise NotAllowed(
                f"the reaction {name} on {topic!r} is not permanent: it belongs to {found.owner!r}, with which it "
                "goes, and which alone can change it"
            )
        if str(number) != name:
            raise LookupError(f"the record {name!r:.60} on {topic!r} is no reaction: the id of one is a number")
        return ReactionHandle(self, number, topic, decode_reaction(found.value), True, (), None, found=True)

    def _link_to_name(self, draft: Draft, source: str, target: str) -> Steps[ReactionHandle]:
        """Forward to a topic that is named, unless a cell is there, which that would not reach."""
        name = list_name(CELLS, target)
        try:
            what = f"the hub did not say whether {target!r} is a cell"
            reply = yield self.topics_nowait(name), FOLLOW_S, what
            if any(it.name == name and it.records for it in reply.topics):
                raise ValueError(
                    f"there is a cell {target!r}, and a link to a name does not set it: "
                    f"rk.link({source!r}, cell={target!r}) does. If the channel of that name is meant, give "
                    f"rk.channel({target!r})"
                )
            draft.add(Operation(FORWARD, (target,), {}))
        except BaseException:
            draft.forget()
            raise
        return (yield from draft.installing(None, 1024, BLOCK, False, 0))

    def reactions(self, topic: str) -> list[dict[str, Any]]:
        """The reactions of a topic, in the order of its list: id, owner, operations, priority, class, value, whether it
        is permanent, and why it is suspended."""
        return take_steps(self.listing_reactions(topic))

    def listing_reactions(self, topic: str) -> Steps[list[dict[str, Any]]]:
        """The steps of `reactions`."""
        records = yield from self._listing_records(check_name(topic))
        found = []
        for record in records:
            try:
                found.append(reaction_facts(record.record, record.owner, record.value))
            except RemoteProtocolError as error:
                found.append({"id": record.record, "owner": record.owner, "operations": f"unreadable: {error}"})
        return found

    def _listing_records(self, topic: str) -> Steps[list[Record]]:
        name = list_name(REACTIONS, topic)
        future = self.follow_nowait(name)
        try:
            yield future, FOLLOW_S, f"the hub did not send the reactions of {topic!r}"
            with self.engine.lock:
                return list(self.replica(name).records.values())
        finally:
            self.unfollow(name, future)


def _topic_of(what: str, end: Any) -> str:
    """The topic on which an end's values are published."""
    topic = getattr(end, "topic", end)
    if topic is None and end is not None and what == "target":
        # A key of a shared dictionary is no source, so that it cannot be the source here.
        return ""
    if not isinstance(topic, str):
        raise TypeError(f"the {what} of a link is a channel, a cell, or the name of one, got {end!r:.60}")
    return check_name(topic)
