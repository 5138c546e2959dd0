"""Names of topics, and the names of the lists of records that the hub keeps for them.

A topic owns several lists: its reactions (read by publishers), its shared values (read by users), the peers that serve
requests under its name, and what a cell or channel of that name holds and may hold. On the wire a list is named
``<kind>:<topic>``. A leading ``@`` is reserved, so that ``@site/...`` can name the hub of another site one day.
"""

from raskid.model.errors import TopicNameError

TOPIC_BYTES_MAX = 255

REACTIONS = "reactions"
SHARED = "shared"
SERVICES = "services"
#: One record: the last value of a cell.
CELLS = "cells"
#: One record: which values a channel or cell carries.
CHANNELS = "channels"
LIST_KINDS = (REACTIONS, SHARED, SERVICES, CELLS, CHANNELS)


def check_topic(name: object) -> str:
    """Return `name` when it can name a topic.

    Raises:
        TopicNameError: It is not text, empty, longer than 255 bytes of UTF-8, begins with the reserved ``@`` or holds
            a control character.
    """
    if not isinstance(name, str):
        raise TopicNameError(f"a topic's name is text, got {type(name).__name__}: {str(name)[:60]!r}")
    if not name:
        raise TopicNameError("a topic's name is empty; give it at least one character, for example 'mesh/ready'")
    if len(name) > TOPIC_BYTES_MAX or len(name.encode("utf-8", "replace")) > TOPIC_BYTES_MAX:
        raise TopicNameError(
            f"a topic's name has {len(name):,} characters, beginning {name[:40]!r}; the limit is {TOPIC_BYTES_MAX} "
            "bytes of UTF-8. Put long keys into the message, not into the name"
        )
    if name[0] == "@":
        raise TopicNameError(f"topic {name!r} begins with '@', which is reserved for naming another site's hub")
    if not name.isprintable():
        raise TopicNameError(f"topic {name!r} holds a control character")
    return name


def list_name(kind: str, topic: str) -> str:
    """The name on the wire of one of a topic's lists."""
    return f"{kind}:{check_topic(topic)}"


def check_list_name(name: str) -> tuple[str, str]:
    """Split a list's name into (kind, topic), or raise `TopicNameError`."""
    kind, colon, topic = name.partition(":")
    if not colon or kind not in LIST_KINDS:
        raise TopicNameError(
            f"{name[:60]!r} names no list; expected one of {', '.join(LIST_KINDS)}, then ':' and a topic"
        )
    return kind, check_topic(topic)
