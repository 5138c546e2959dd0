"""The commands. Each opens a session in a system, does one thing through the public calls, and leaves.

Whatever goes wrong is one line on standard error and exit code 1. With `--json`, standard output holds JSON only:
one document, or one line for each message with `get --follow`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

import raskid
from raskid.client.session import Session
from raskid.launch import local
from raskid.model.errors import RaskidError, SessionClosed, WaitTimeout
from raskid.model.topics import check_topic, list_name

app = typer.Typer(
    help="Raskid: messages and tasks between the processes of a system.", no_args_is_help=True, add_completion=False
)

DOWN_S = 10.0
ATTACH_S = 5.0

SYSTEM = typer.Option("default", "--system", help="Name of the system, as given to `raskid up`.")
JSON = typer.Option(False, "--json", help="Print JSON.")


class _Failure(Exception):
    """What a command cannot do; the text is for the user."""


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has enough, as `head` does. What is left to flush at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (RaskidError, _Failure, ValueError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        typer.echo(f"raskid: {text}", err=True)
        raise typer.Exit(1) from error


def _attach(name: str) -> Session:
    """A session in a system that runs; never starts one."""
    _, file = local.read_session(name)
    if not _lives(file.pid):
        local.systems()  # removes what dead systems left
        raise SessionClosed(f"the system {name!r} is gone: its head (pid {file.pid}) has ended")
    return raskid.connect(f"local://{name}", timeout=ATTACH_S)


def _print_json(value: Any) -> None:
    # Standard output is flushed, so that a pipe sees each message of `get --follow` as it comes.
    print(json.dumps(value, default=_plain, ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    """What JSON has no kind for: arrays and numpy scalars as lists and numbers, other things as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _print_table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


@app.command()
def up(
    runners: int = typer.Option(None, min=1, max=1024, help="How many runners; default: one per processor."),
    name: str = typer.Option("default", help="Name of the new system."),
    as_json: bool = JSON,
) -> None:
    """Start a system on this machine that stays until `raskid down`."""
    with _clear_errors():
        if not name or "/" in name or name.startswith("."):
            raise _Failure(f"{name!r} cannot name a system: a name holds no '/' and does not begin with '.'")
        local.systems()  # removes what dead systems left, so that their names can be used again
        count = runners or local.default_runners()
        handle, file = local.start_head(count, name, watch_input=False)
        url = f"local://{name}"
        try:
            with raskid.connect(url) as session:
                session.wait_runners(count)
        except BaseException:
            handle.process.terminate()
            handle.stop()
            raise
        handle.detach()
        if as_json:
            _print_json(
                {"name": name, "url": url, "pid": file.pid, "runners": count, "directory": str(handle.directory)}
            )
        else:
            print(f"{url} is up: {count} runners, head has pid {file.pid}, log in {handle.directory / 'log'}")
            print(f'attach with   raskid.connect("{url}")   or   export RASKID_URL={url}')
            print(f"end it with   raskid down {name}")


@app.command()
def down(name: str = typer.Argument("default", help="Name of the system."), as_json: bool = JSON) -> None:
    """End a system: runners, head, and all sessions in it."""
    with _clear_errors():
        directory, file = local.read_session(name)
        session = _attach(name)
        session.end_system()
        deadline = time.monotonic() + DOWN_S
        while directory.exists() or _lives(file.pid):
            if time.monotonic() > deadline:
                raise _Failure(f"system {name!r} does not end: its head (pid {file.pid}) still runs after {DOWN_S:g} s")
            time.sleep(0.01)
        session.close()
        if as_json:
            _print_json({"name": name, "ended": True})
        else:
            print(f"local://{name} has ended")


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that its parent has not waited for does not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@app.command()
def ps(
    name: str = typer.Argument(None, help="Name of the system; without: all systems."), as_json: bool = JSON
) -> None:
    """Show the runners of a system, or the systems of this machine."""
    with _clear_errors():
        if name is None:
            _list_systems(as_json)
        else:
            _list_runners(name, as_json)


def _list_systems(as_json: bool) -> None:
    found = []
    for name in sorted(local.systems()):
        # A system may end between the two looks.
        with contextlib.suppress(RaskidError, OSError):
            _, file = local.read_session(name)
            with _attach(name) as session:
                found.append(
                    {"name": name, "url": f"local://{name}", "pid": file.pid, "runners": len(session.runners())}
                )
    if as_json:
        _print_json(found)
    elif found:
        _print_table(("system", "url", "pid", "runners"), [tuple(system.values()) for system in found])
    else:
        print("no system runs on this machine; start one with: raskid up")


def _list_runners(name: str, as_json: bool) -> None:
    with _attach(name) as session:
        facts = session.status()
    counted = facts["runner_counters"]
    runners = [
        {
            "id": runner["runner"], "host": runner["host"], "pid": runner["pid"], "now": runner["outstanding"],
            "finished": counted.get(runner["runner"], {}).get("tasks", 0),
        }
        for runner in sorted(facts["runners"], key=lambda runner: str(runner["runner"]))
    ]  # fmt: skip
    if as_json:
        _print_json(runners)
    else:
        _print_table(("runner", "host", "pid", "tasks now", "finished"), [tuple(row.values()) for row in runners])


@app.command()
def send(
    topic: str = typer.Argument(help="Topic of the message."),
    value: str = typer.Argument(metavar="JSON", help="An object gives named fields; anything else is the one value."),
    system: str = SYSTEM,
    as_json: bool = JSON,
) -> None:
    """Publish a message."""
    with _clear_errors():
        try:
            message = json.loads(value)
        except json.JSONDecodeError as error:
            raise _Failure(f"{value[:60]!r} is not JSON ({error}); text needs quotes within: '\"text\"'") from error
        with _attach(system) as session:
            if isinstance(message, dict):
                # The topic goes by position, so that a field may bear its name too.
                session.publish(check_topic(topic), **message)
            else:
                session.publish(check_topic(topic), message)
            _wait_written(session, topic)
        if as_json:
            _print_json({"topic": topic, "sent": True})


def _wait_written(session: Session, topic: str) -> None:
    """Wait until the message is on its way: connections to subscribers are only just being opened."""
    peer = session.peer
    targets = [target.peer for target in session._plans.get(topic, ())]
    if not session.engine.wait(lambda: all(peer.is_connected(t) and not peer.backlog(t) for t in targets), ATTACH_S):
        silent = ", ".join(t for t in targets if not peer.is_connected(t) or peer.backlog(t))
        raise WaitTimeout(f"{silent} did not take the message on {topic!r} within {ATTACH_S:g} s")


@app.command()
def get(
    topic: str = typer.Argument(help="Topic of the shared list, or of the messages with --follow."),
    follow: bool = typer.Option(False, "--follow", help="Print the topic's messages as they come."),
    count: int = typer.Option(None, min=1, help="End after so many messages."),
    timeout: float = typer.Option(None, min=0.0, help="End when no message came for so many seconds; exit code 1."),
    system: str = SYSTEM,
    as_json: bool = JSON,
) -> None:
    """Print the records of a shared list, or messages as they come."""
    with _clear_errors(), _attach(system) as session:
        check_topic(topic)
        if follow:
            _follow(session, topic, count, timeout, as_json)
            return
        name = list_name("shared", topic)
        known = session.topics(name).get(name)
        records = dict(session.shared(topic)) if known and known["records"] else {}
        if as_json:
            _print_json(records)
        else:
            for key, value in records.items():
                print(f"{key}\t{json.dumps(value, default=_plain, ensure_ascii=False)}")


def _follow(session: Session, topic: str, count: int | None, timeout: float | None, as_json: bool) -> None:
    taken = 0
    subscription = session.subscribe(topic)
    while count is None or taken < count:
        try:
            message = subscription.get(timeout)
        except WaitTimeout:
            wanted = f", of {count} wanted" if count else ""
            raise WaitTimeout(f"no message on {topic!r} for {timeout:g} s ({taken} came{wanted})") from None
        if message is None:
            raise SessionClosed("the system has ended")
        taken += 1
        if as_json:
            _print_json(
                {"topic": message.topic, "publisher": message.publisher, "args": message.args, "fields": message.fields}
            )
        else:
            parts = [json.dumps(value, default=_plain, ensure_ascii=False) for value in message.args]
            parts += [f"{k}={json.dumps(v, default=_plain, ensure_ascii=False)}" for k, v in message.fields.items()]
            print(" ".join(parts), flush=True)


@app.command()
def topics(
    prefix: str = typer.Argument("", help="Only lists whose name begins so, for example shared:"),
    system: str = SYSTEM,
    as_json: bool = JSON,
) -> None:
    """Show the lists that the hub keeps."""
    with _clear_errors():
        with _attach(system) as session:
            found = session.topics(prefix)
        if as_json:
            _print_json(found)
        else:
            rows = [(name, one["version"], one["records"], one["readers"]) for name, one in sorted(found.items())]
            _print_table(("list", "version", "records", "readers"), rows)


if __name__ == "__main__":
    app()
