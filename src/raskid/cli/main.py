"""The commands. Each opens a session in a system, does one thing through the public calls, and leaves.

Every command takes the system's name as `--system NAME` (`-s`); `up`, `down` and `ps` take it without the option as
well. Without a name it is the one in `RASKID_URL`, else "default". Only `run-test` takes none: it starts a system of
its own.
"""

from __future__ import annotations

import shlex
import time
from typing import Any

import typer

import raskid
from raskid.cli.shell import (
    ATTACH_S,
    Failure,
    OneLineGroup,
    attach,
    clear_errors,
    from_json,
    print_json,
    print_table,
    say,
    to_json,
    which,
)
from raskid.client.session import Session
from raskid.launch import local
from raskid.launch.connect import RUNNERS_MAX, check_runners
from raskid.launch.directories import url_of
from raskid.model.errors import RaskidError, WaitTimeout
from raskid.model.topics import check_topic, list_name
from raskid.protocol.reactions import DROP_OLDEST, OVERFLOWS

app = typer.Typer(
    cls=OneLineGroup,
    help="Raskid: messages and tasks between the processes of a system.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
)

DOWN_S = 10.0
TEST_S = 60.0

SYSTEM = typer.Option(
    None, "--system", "-s", "--name", metavar="NAME",
    help="Name of the system. Default: the one in RASKID_URL, else 'default'.",
)  # fmt: skip
NAME = typer.Argument(None, metavar="[NAME]", help="The same, without the option.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.callback(invoke_without_command=True)
def common(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version, and end.")
) -> None:
    """Raskid: messages and tasks between the processes of a system."""
    if version:
        print(f"raskid {raskid.__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(0)


@app.command()
def up(
    argument: str = NAME,
    system: str = SYSTEM,
    runners: int = typer.Option(None, metavar="N", help=f"1 to {RUNNERS_MAX} runners. Default: one per processor."),
    manager: str = typer.Option("", metavar="NAME", help="A class in the place of the manager: module:attribute."),
    as_json: bool = JSON,
) -> None:
    """Start a system on this machine that stays until `raskid down`."""
    with clear_errors():
        name = which(system, argument).name
        local.systems()  # removes what dead systems left, so that their names can be used again
        count = local.default_runners() if runners is None else check_runners(runners)
        handle, file = local.start_head(count, name, watch_input=False, manager=manager)
        url = url_of(name)
        try:
            with raskid.connect(url) as session:
                session.wait_runners(count)
        except BaseException:
            handle.process.terminate()
            handle.stop()
            raise
        handle.detach()
        if as_json:
            print_json(
                {"name": name, "url": url, "pid": file.pid, "runners": count, "directory": str(handle.directory)}
            )
        else:
            print(f"{url} is up: {count} runners, head has pid {file.pid}, log in {handle.directory / 'log'}")
            print(f"attach with   raskid.connect({url!r})   or   export RASKID_URL={shlex.quote(url)}")
            print(f"end it with   raskid down {shlex.quote(name)}")


@app.command()
def down(argument: str = NAME, system: str = SYSTEM, as_json: bool = JSON) -> None:
    """End a system: runners, head, and all sessions in it."""
    with clear_errors():
        wanted = which(system, argument)
        name = wanted.name
        directory, file = local.read_session(name)
        session = attach(wanted)
        session.end_system()
        deadline = time.monotonic() + DOWN_S
        while directory.exists() or _lives(file.pid):
            if time.monotonic() > deadline:
                raise Failure(f"system {name!r} does not end: its head (pid {file.pid}) still runs after {DOWN_S:g} s")
            time.sleep(0.01)
        session.close()
        if as_json:
            print_json({"name": name, "ended": True})
        else:
            print(f"{url_of(name)} has ended")


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that its parent has not waited for does not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@app.command()
def ps(argument: str = NAME, system: str = SYSTEM, as_json: bool = JSON) -> None:
    """Show the processes of a system; without a name, the systems of this machine."""
    with clear_errors():
        if system is None and argument is None:
            _list_systems(as_json)
        else:
            _list_processes(which(system, argument), as_json)


def _list_systems(as_json: bool) -> None:
    found = []
    for name in sorted(local.systems()):
        try:
            _, file = local.read_session(name)
        except (RaskidError, OSError):
            # A system may end between the two looks.
            continue
        runners = None
        try:
            with raskid.connect(url_of(name), timeout=ATTACH_S) as session:
                runners = len(session.runners())
        except (RaskidError, OSError) as error:
            say(f"{name}: its head (pid {file.pid}) does not answer: {error}")
        found.append({"name": name, "url": url_of(name), "pid": file.pid, "runners": runners})
    if as_json:
        print_json(found)
    elif found:
        print_table(("system", "url", "pid", "runners"), [tuple(one.values()) for one in found])
    else:
        print("no system runs on this machine; start one with: raskid up")


def _list_processes(wanted: Any, as_json: bool) -> None:
    with attach(wanted) as session:
        facts = session.status()
    counted = facts["runner_counters"]
    head = facts["head"]
    rows: list[dict[str, Any]] = [
        {"kind": "head", "id": head["peer"], "host": head["host"], "pid": head["pid"], "now": None, "finished": None}
    ]
    rows += [
        {
            "kind": "runner", "id": runner["runner"], "host": runner["host"], "pid": runner["pid"],
            "now": runner["outstanding"], "finished": counted.get(runner["runner"], {}).get("tasks", 0),
        }
        for runner in sorted(facts["runners"], key=lambda runner: str(runner["runner"]))
    ]  # fmt: skip
    rows = [{**row, "state": None} for row in rows]
    rows += [
        {
            "kind": "service", "id": service["name"], "host": head["host"], "pid": service["pid"] or None, "now": None,
            "finished": None, "state": " ".join((service["state"], *service["why"].splitlines()[-1:])),
        }
        for service in facts["services"]
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        titles = ("kind", "id", "host", "pid", "tasks now", "finished", "state")
        print_table(titles, [tuple(row.values()) for row in rows])


# A value may begin with '-', as negative numbers do.
@app.command(context_settings={"ignore_unknown_options": True})
def send(
    topic: str = typer.Argument(help="Topic of the message; with --cell, name of the cell."),
    value: str = typer.Argument(
        metavar="JSON", help="An object gives a message's named fields; anything else is the one value."
    ),
    cell: bool = typer.Option(False, "--cell", help="Set a cell to the value, which stays."),
    system: str = SYSTEM,
    as_json: bool = JSON,
) -> None:
    """Publish a message, or set a cell."""
    with clear_errors():
        check_topic(topic)
        message = from_json(value)
        with attach(which(system)) as session:
            if cell:
                with session.cell(topic) as handle:
                    handle.set(message)
            elif isinstance(message, dict):
                # The topic goes by position, so that a field may bear its name too.
                session.publish(topic, **message)
            else:
                session.publish(topic, message)
            _wait_written(session, topic)
        if as_json:
            print_json({"cell": topic, "set": True} if cell else {"topic": topic, "sent": True})


def _wait_written(session: Session, topic: str) -> None:
    """Wait until the message is on its way: connections to subscribers are only just being opened."""
    peer = session.peer
    targets = [target.peer for target in session._plans.get(topic, ())]
    if not session.engine.wait(lambda: all(peer.is_connected(t) and not peer.backlog(t) for t in targets), ATTACH_S):
        silent = ", ".join(t for t in targets if not peer.is_connected(t) or peer.backlog(t))
        raise WaitTimeout(f"{silent} did not take the message on {topic!r} within {ATTACH_S:g} s")


@app.command()
def get(
    topic: str = typer.Argument(help="Name of the shared list; of the cell with --cell; else topic with --follow."),
    follow: bool = typer.Option(False, "--follow", help="Print messages, or the cell's values, as they come."),
    cell: bool = typer.Option(False, "--cell", help="Print the value of a cell."),
    count: int = typer.Option(None, min=1, help="End after so many."),
    timeout: float = typer.Option(None, min=0.0, help="End when none came for so many seconds; exit code 1."),
    overflow: str = typer.Option(
        None, metavar="POLICY", help=f"When this is too slow: {', '.join(OVERFLOWS)}. Default: {DROP_OLDEST}."
    ),
    history: int = typer.Option(None, metavar="N", min=-1, help="Begin with the last N kept messages; -1: all."),
    system: str = SYSTEM,
    as_json: bool = JSON,
) -> None:
    """Print the records of a shared list, the value of a cell, or what comes. Exit code 1 when there is nothing.

    What comes is left out where it comes too fast, and standard error says how much that was: whoever looks holds no
    program up, unless --overflow is block.
    """
    with clear_errors():
        check_topic(topic)
        if not follow and (count is not None or timeout is not None):
            raise Failure("--count and --timeout go with --follow")
        if (cell or not follow) and (overflow is not None or history is not None):
            raise Failure("--overflow and --history are for messages: they go with --follow, and not with --cell")
        with attach(which(system)) as session:
            if not follow and not cell:
                _print_records(session, topic, as_json)
                return
            from raskid.cli import following

            if not follow:
                following.print_cell(session, topic, as_json)
                return
            ending = following.Ending(f"{'value of the cell' if cell else 'message on'} {topic!r}", count, timeout)
            if cell:
                following.follow_cell(session, topic, ending, as_json)
            else:
                following.follow_topic(session, topic, ending, overflow or DROP_OLDEST, history or 0, as_json)


def _print_records(session: Session, topic: str, as_json: bool) -> None:
    name = list_name("shared", topic)
    known = session.topics(name).get(name)
    records = dict(session.shared(topic)) if known and known["records"] else {}
    if as_json:
        print_json(records)
    else:
        for key, value in records.items():
            print(f"{key}\t{to_json(value)}")
    if not records:
        raise Failure(f"there is nothing in the shared list {topic!r}; messages are seen with --follow")


@app.command()
def topics(
    prefix: str = typer.Argument("", help="Only lists whose name begins so, for example shared:"),
    system: str = SYSTEM,
    as_json: bool = JSON,
) -> None:
    """Show the lists that the hub keeps."""
    with clear_errors():
        with attach(which(system)) as session:
            found = session.topics(prefix)
        if as_json:
            print_json(found)
        else:
            rows = [(name, one["version"], one["records"], one["readers"]) for name, one in sorted(found.items())]
            print_table(("list", "version", "records", "readers"), rows)


@app.command()
def reactions(
    topic: str = typer.Argument(help="Topic whose messages they take."),
    remove: str = typer.Option(None, metavar="ID", help="Remove a permanent reaction, whoever has installed it."),
    resume: str = typer.Option(None, metavar="ID", help="Let one that is suspended happen again."),
    system: str = SYSTEM,
    as_json: bool = JSON,
) -> None:
    """Show what is done with the messages of a topic where they are published: its subscriptions and reactions."""
    with clear_errors():
        check_topic(topic)
        if remove is not None and resume is not None:
            raise Failure("either --remove or --resume")
        with attach(which(system)) as session:
            try:
                if remove is not None:
                    session.reaction(topic, remove).close()
                elif resume is not None:
                    session.reaction(topic, resume).resume()
            except LookupError as error:
                raise Failure(str(error)) from None
            found = session.reactions(topic)
        if as_json:
            print_json(found)
        elif found:
            titles = ("id", "owner", "operations", "priority", "class", "value", "permanent", "suspended")
            print_table(titles, [tuple(_brief(one.get(title)) for title in titles) for one in found])
        else:
            print(f"nobody reacts to {topic!r}")


def _brief(value: Any) -> Any:
    """What stands in a table: nothing for what is as it is for most."""
    if value is False or (type(value) is str and not value):
        return None
    return "yes" if value is True else value


@app.command()
def services(system: str = SYSTEM, as_json: bool = JSON) -> None:
    """Show the services of a system."""
    with clear_errors():
        with attach(which(system)) as session:
            found = session.services()
        if as_json:
            print_json(found)
        elif found:
            rows = [(it["name"], it["state"], it["pid"] or None, "".join(it["why"].splitlines()[-1:])) for it in found]
            print_table(("service", "state", "pid", "why"), rows)
        else:
            print("there is no service; one is started with rk.start_service(name, factory)")


@app.command()
def pipe(system: str = SYSTEM) -> None:
    """Let another program take part: it writes commands to standard input, one JSON object a line, and reads answers
    and messages from standard output. See docs/pipe.md. Ends when its input ends."""
    with clear_errors():
        from raskid.client.pipe import run_pipe

        run_pipe(attach(which(system)))


@app.command("run-test")
def run_test(
    script: str = typer.Argument(help="A Python script that ends by itself."),
    args: list[str] = typer.Argument(
        None, metavar="ARGS", help="Arguments of the script; those that begin with - after --."
    ),
    runners: int = typer.Option(None, metavar="N", help=f"1 to {RUNNERS_MAX} runners. Default: one per processor."),
    expected: str = typer.Option(None, metavar="FILE", help="Default: SCRIPT with the suffix .expected."),
    timeout: float = typer.Option(TEST_S, metavar="S", help="Kill the script after so many seconds."),
    update: bool = typer.Option(False, "--update", help="Write the expected file, if the output is another."),
    as_json: bool = JSON,
) -> None:
    """Run a script on a system of its own, and compare what it prints with an expected file.

    raskid.connect() in the script attaches to that system. In the expected file '...' stands for any text within its
    line, and a line that is just '...' for any number of lines, none included, much as in doctest. Compared is standard
    output; standard error, and what tasks print, goes to standard error. The script reads nothing from standard input.

    Exit code 0: as expected; 1: not so, or the script failed or did not end in time; 2: no such script or expected
    file.
    """
    with clear_errors():
        from raskid.cli import runtest

        report = runtest.run_test(script, args or [], runners, expected, timeout, update)
        if as_json:
            print_json(report._asdict())
        else:
            runtest.print_report(report)
        if not report.passed:
            say(f"{script}: {report.reason}")
            raise typer.Exit(1)


if __name__ == "__main__":
    app()
