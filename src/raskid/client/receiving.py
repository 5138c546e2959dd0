"""The part of a representative that subscribes and reacts for its program, and tells what comes of it.

Subscriptions and reactions have names of one kind: what is named can deliver messages, and `unsubscribe` ends it. A
message that has to be acknowledged is the program's until it says `done`, or goes; so nothing is told of those that had
come when it unsubscribes, which are for others. A subscription that pulls has a message told for each `ask`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from raskid.client.commands import BadLine, closest
from raskid.client.escapes import to_json
from raskid.client.handles import FAILURES_KEPT
from raskid.client.notices import failure_event, message_event
from raskid.model.operations import CODE
from raskid.protocol.messages import ROLE_EXECUTE
from raskid.protocol.reactions import OVERFLOWS, PULL

if TYPE_CHECKING:
    from raskid.client.aio import AsyncSession
    from raskid.client.handles import Failure, ReactionHandle
    from raskid.client.messages import Subscription

#: Arguments of commands that are passed on as they are.
SUBSCRIBE_OPTIONS = (
    "capacity", "overflow", "timeout", "pull", "history", "fields", "numbered", "one_of", "choose_by", "ack", "value",
)  # fmt: skip
REACT_OPTIONS = (
    "priority", "value", "limit", "one_of", "choose_by", "ack", "place", "seconds", "permanent", "timeout",
)  # fmt: skip


class Teller(Protocol):
    """Where events go."""

    @property
    def has_room(self) -> bool:
        """Whether little that was told waits to be read."""

    async def room(self) -> None:
        """Wait until that is so."""

    def tell(self, event: dict[str, Any]) -> None:
        """Tell it."""


class Reception:
    """A subscription or a reaction of the program, and what is to be told of it.

    Attributes:
        name: What the program calls it.
        subscription: Where its messages come from; None where it delivers none.
        handle: The reaction; None of what is just a subscription.
        tasks: What tells its events.
    """

    def __init__(self, name: str, pull: bool = False, ack: bool = False, permanent: bool = False) -> None:
        self.name = name
        self.subscription: Subscription | None = None
        self.handle: ReactionHandle | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.pull = pull
        self.ack = ack
        self.permanent = permanent
        #: So many messages were asked for, and not taken yet.
        self.asked = 0
        #: The last failures that were not told. How many there were, each says.
        self._failures: deque[Failure] = deque(maxlen=FAILURES_KEPT)
        self._word = asyncio.Event()
        self._ending = False

    def begin(self, tell: Callable[[Callable[[], dict[str, Any]]], Any]) -> None:
        """Have its events told, from a later turn of the loop on: behind the answer to whoever made it."""
        if self.subscription is not None:
            # That it takes the next does not mean that the program is through with the one before.
            self.subscription.by_hand = self.ack
            self.tasks.append(asyncio.create_task(self._tell_messages(self.subscription, tell)))
        if self.handle is not None:
            self.tasks.append(asyncio.create_task(self._tell_failures(tell)))

    async def _tell_messages(self, subscription: Subscription, tell: Any) -> None:
        while not self.pull or await self._was_asked():
            try:
                message = await anext(subscription)
            except StopAsyncIteration:
                return
            await tell(partial(message_event, self.name, message))

    async def _was_asked(self) -> bool:
        while not self.asked:
            if self._ending:
                return False
            self._word.clear()
            await self._word.wait()
        self.asked -= 1
        return True

    def ask(self, count: int) -> None:
        """So many more messages are wanted."""
        self.asked += count
        self._word.set()

    def on_failure(self, failure: Failure) -> None:
        """The reaction failed."""
        self._failures.append(failure)
        self._word.set()

    async def _tell_failures(self, tell: Any) -> None:
        while True:
            while self._failures:
                await tell(lambda: failure_event(self.name, self._failures.popleft()))
            if self._ending:
                return
            self._word.clear()
            await self._word.wait()

    async def end(self, keep_permanent: bool = False) -> None:
        """End it, and tell what is left; a permanent reaction may stay."""
        if self.ack:
            # What has come and was not told is for another member of the class.
            for task in self.tasks[:1]:
                task.cancel()
        try:
            if self.handle is None:
                assert self.subscription is not None
                await self.subscription.aclose()
            elif not (self.permanent and keep_permanent):
                await self.handle.aclose()
        finally:
            self._ending = True
            self._word.set()
            # Whoever cancels this cancels them too.
            await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def dropped(self) -> int:
        """How many messages its policy left out."""
        return self.subscription.dropped if self.subscription is not None else 0


class Receiving:
    """The commands about subscriptions and reactions.

    Args:
        rk: The session; this runs in its event loop.
        teller: Where events for the program go.
    """

    def __init__(self, rk: AsyncSession, teller: Teller) -> None:
        self._rk = rk
        self._teller = teller
        self._receptions: dict[str, Reception] = {}

    async def _tell_when_room(self, event: Callable[[], dict[str, Any]]) -> None:
        while not self._teller.has_room:
            await self._teller.room()
        self._teller.tell(event())

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What tells events, for whoever cannot wait until it has told them all."""
        return [task for reception in self._receptions.values() for task in reception.tasks]

    def _new(self, given: dict[str, Any]) -> Reception:
        name = given.get("as", given["topic"])
        found = self._receptions.get(name)
        if found is not None:
            what = "reaction" if found.handle is not None else "subscription"
            raise BadLine(f'there is a {what} {name!r} already; name another one with "as"')
        return Reception(name, *(given.get(key, False) for key in ("pull", "ack", "permanent")))

    def _find(self, name: str) -> Reception:
        found = self._receptions.get(name)
        if found is None:
            raise BadLine(f"there is no subscription or reaction {name!r}{closest(name, self._receptions)}")
        return found

    def _find_reaction(self, name: str) -> ReactionHandle:
        handle = self._find(name).handle
        if handle is None:
            raise BadLine(f"{name!r} is a subscription and no reaction")
        return handle

    def _began(self, reception: Reception) -> None:
        self._receptions[reception.name] = reception
        reception.begin(self._tell_when_room)

    # ── subscriptions ──

    async def subscribe(self, given: dict[str, Any]) -> dict[str, Any]:
        """Tell the messages of a topic from now on."""
        reception = self._new(given)
        options = {key: given[key] for key in SUBSCRIBE_OPTIONS if key in given}
        subscription = reception.subscription = await self._rk.subscribe(given["topic"], **options)
        self._began(reception)
        return {"subscription": reception.name, "silent": list(subscription.silent)}

    async def unsubscribe(self, given: dict[str, Any]) -> dict[str, Any]:
        """Tell them no longer, or end a reaction."""
        found = self._find(given["as"])
        del self._receptions[found.name]
        await found.end()
        return {"dropped": found.dropped}

    def done(self, given: dict[str, Any]) -> dict[str, Any]:
        """The program is through with a message that has to be acknowledged."""
        found = self._find(given["as"])
        if not found.ack or found.subscription is None:
            raise BadLine(f'the messages of {found.name!r} are not acknowledged: it was made without "ack"')
        publisher, number = given["publisher"], given["number"]
        if not found.subscription.acknowledge(publisher, number):
            raise BadLine(
                f"message {number} of {publisher!r} is not open in {found.name!r}: it was done, or never came"
            )
        return {}

    def ask(self, given: dict[str, Any]) -> dict[str, Any]:
        """The program wants a message, or several, of a subscription that pulls."""
        found = self._find(given["as"])
        if not found.pull:
            raise BadLine(f'the messages of {found.name!r} come unasked: it was made without "pull"')
        found.ask(given.get("count", 1))
        return {}

    # ── reactions ──

    async def react(self, given: dict[str, Any]) -> dict[str, Any]:
        """Have something done with the messages of a topic where they are published."""
        reception = self._new(given)
        operations = given["operations"]
        if any(operation.op == CODE for operation in operations):
            self._rk.session.require(ROLE_EXECUTE, "a reaction with code")
        if given.get("overflow") == PULL:
            raise BadLine(
                f"'overflow' of a reaction is one of {', '.join(OVERFLOWS)}; subscribe with \"pull\" for that"
            )
        options = {key: given[key] for key in REACT_OPTIONS if key in given}
        draft = self._rk.react(given["topic"], on_error=reception.on_failure, **options)
        try:
            for operation in operations:
                draft.add(operation)
        except BaseException:
            draft.forget()
            raise
        manner = {key: given[key] for key in ("capacity", "overflow", "numbered", "history") if key in given}
        handle = reception.handle = await draft.install(None, **manner)
        reception.subscription = handle.subscription
        self._began(reception)
        return {"reaction": reception.name, "silent": list(handle.silent)}

    async def suspend(self, given: dict[str, Any]) -> dict[str, Any]:
        """Let nothing of a reaction happen until it is resumed."""
        handle = self._find_reaction(given["as"])
        await (handle.asuspend(given["why"]) if "why" in given else handle.asuspend())
        return {}

    async def resume(self, given: dict[str, Any]) -> dict[str, Any]:
        """Let it happen again."""
        await self._find_reaction(given["as"]).aresume()
        return {}

    async def reactions(self, given: dict[str, Any]) -> dict[str, Any]:
        """The reactions of a topic, everybody's."""
        return {"reactions": to_json(await self._rk.reactions(given["topic"]))}

    async def remove_reaction(self, given: dict[str, Any]) -> dict[str, Any]:
        """Remove a permanent reaction, whoever has installed it."""
        await (await self._rk.reaction(given["topic"], given["reaction"])).aclose()
        return {}

    async def resume_reaction(self, given: dict[str, Any]) -> dict[str, Any]:
        """Let one that is suspended happen again."""
        await (await self._rk.reaction(given["topic"], given["reaction"])).aresume()
        return {}

    def _ends(self) -> list[Any]:
        """What ends all of them, as coroutines; permanent reactions stay."""
        ends = [reception.end(keep_permanent=True) for reception in self._receptions.values()]
        self._receptions.clear()
        return ends
