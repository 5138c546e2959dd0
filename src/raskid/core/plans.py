"""What a publisher does with a message of a topic: its reactions, in the order in which they run.

A plan of plain subscribers is a tuple of targets, and nothing here is needed. As soon as one reaction of a topic is
more than that, the topic has a `Plan`: units by falling priority, and by age where it is the same. A class of reactions
is one unit, which stands where its member of the highest priority would.
"""

from __future__ import annotations

from typing import Any

from raskid.core.chains import Chain
from raskid.core.groups import Group
from raskid.core.targets import Target
from raskid.protocol.reactions import PULL


class Plan:
    """The reactions of one topic at its publisher, where they are more than plain subscribers."""

    __slots__ = ("consumes", "encodes", "holds", "lingers", "numbered", "passes_on", "units")

    def __init__(self, units: list[Any]) -> None:
        #: Each is a Target, a Chain or a Group.
        self.units = units
        self.consumes = False
        self.holds = False
        self.numbered = False
        #: Some unit needs the message as bytes: what cannot be written is the publisher's error.
        self.encodes = False
        #: Values are still needed when publishing has returned, unless somebody waits.
        self.lingers = False
        #: Some unit does nothing but publish the message elsewhere.
        self.passes_on = any(isinstance(unit, Chain) and unit.passes_on for unit in units)
        for unit in units:
            if isinstance(unit, Target):
                self.encodes = True
                continue
            members = unit.active if isinstance(unit, Group) else [unit]
            for chain in members:
                self.consumes = self.consumes or chain.consumes
                self.holds = self.holds or chain.holds
                self.numbered = self.numbered or chain.numbered
                self.lingers = self.lingers or chain.lingers
                self.encodes = self.encodes or chain.encodes
            if isinstance(unit, Group):
                asks = unit.metric_of() is not None
                self.holds = self.holds or asks
                self.lingers = self.lingers or asks
                self.encodes = self.encodes or unit.ack

    def wanting(self, now: float) -> list[tuple[Any, int]]:
        """The units that want the next message, with the stage of each where it begins.

        Nobody has looked at the message yet, so that one which nobody wants need not be made: readers that have not
        asked, and samples that leave it out, decide by themselves.
        """
        if self.consumes:
            return [(unit, 0) for unit in self.units]
        found: list[tuple[Any, int]] = []
        for unit in self.units:
            begin = 0
            if isinstance(unit, Target):
                if unit.overflow == PULL and unit.credit <= 0:
                    continue
            elif isinstance(unit, Chain):
                if not unit.active:
                    continue
                if unit.reaction.overflow == PULL and unit.target is not None and unit.target.credit <= 0:
                    continue
                if unit.samples:
                    step = unit.stages[0].step
                    assert step is not None
                    if step.take((), {}, now) is None:
                        continue
                    begin = 1
            found.append((unit, begin))
        return found


def arrange(members: list[Any], groups: dict[str, Group]) -> Plan | None:
    """The plan of a topic; None where all its members are plain subscribers.

    Args:
        members: Targets and chains, in the order of the topic's list.
        groups: The topic's classes by name, which get their members here.
    """
    for group in groups.values():
        group.members = []
    if all(isinstance(member, Target) and member.overflow != PULL for member in members):
        return None
    units: list[tuple[int, Any]] = []
    # Classes that have a member at work: of a large class nobody can look at all members for each of them.
    placed: set[str] = set()
    for member in members:
        if isinstance(member, Target):
            units.append((0, member))
            continue
        chain: Chain = member
        if chain.refused:
            continue
        name = chain.reaction.group
        if not name:
            if chain.active:
                units.append((chain.reaction.priority, chain))
            continue
        group = groups[name]
        if chain.active and name not in placed:
            placed.add(name)
            units.append((0, group))
        group.members.append(chain)
        group.ack = group.ack or chain.reaction.ack
    ordered = [(unit.priority if isinstance(unit, Group) else priority, unit) for priority, unit in units]
    ordered.sort(key=_by_priority)
    return Plan([unit for _, unit in ordered])


def _by_priority(pair: tuple[int, Any]) -> int:
    return -pair[0]
