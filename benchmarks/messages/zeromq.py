"""pyzmq: PUSH/PULL and PUB/SUB over ipc, PUSH/PULL between threads, REQ/REP.

PUSH/PULL carries the floor's msgspec frame; PUB/SUB carries topic and body as two parts. No high-water mark, so nothing
is dropped.
"""

from __future__ import annotations

import tempfile
import threading
import time
from typing import Any

import msgspec
import zmq

from benchmarks.messages import shared
from benchmarks.messages.shared import BODY, Counter, Partner, Values

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode
TOPIC = "bench/values"


def _socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[Any]:
    socket: zmq.Socket[Any] = context.socket(kind)
    socket.set_hwm(0)
    socket.linger = 0
    return socket


def _receive(socket: zmq.Socket[Any], kind: str, counter: Counter) -> None:
    while not counter.end:
        if kind == "push":
            counter(decode(socket.recv())[1])
        else:
            counter(socket.recv_multipart()[1])


def _sender(socket: zmq.Socket[Any], kind: str) -> Any:
    topic = TOPIC.encode()
    if kind == "push":
        return lambda body: socket.send(encode((TOPIC, body)))
    return lambda body: socket.send_multipart((topic, body))


def throughput(n: int, kind: str = "push") -> Values:
    """Publisher to subscriber, two processes."""
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        address = f"ipc://{shared.socket_path(folder)}"
        with _socket(context, zmq.PULL if kind == "push" else zmq.SUB) as socket:
            if kind == "pub":
                socket.setsockopt(zmq.SUBSCRIBE, TOPIC.encode())
            socket.bind(address)
            with Partner(f"zmq-{kind}", "publish", address, n) as partner:
                counter = Counter(n, partner.go, lambda: None)
                _receive(socket, kind, counter)
                return counter.values(partner.answer())


def throughput_threads(n: int) -> Values:
    """Publisher to subscriber, two threads of this process."""
    warm, sent = threading.Event(), {}
    with zmq.Context() as context, _socket(context, zmq.PULL) as socket:
        socket.bind("inproc://bench")

        def publish() -> None:
            with _socket(context, zmq.PUSH) as out:
                out.connect("inproc://bench")
                send = _sender(out, "push")
                send(shared.WARM)
                warm.wait()
                sent["start"] = time.monotonic()
                for _ in range(n):
                    send(BODY)
                sent["sent"] = time.monotonic()

        thread = threading.Thread(target=publish)
        thread.start()
        counter = Counter(n, warm.set, lambda: None)
        _receive(socket, "push", counter)
        thread.join()
        return counter.values(sent)


def _round_trips(socket: zmq.Socket[Any], n: int) -> Values:
    times = []
    for i in range(n + 200):
        start = time.perf_counter()
        socket.send(BODY)
        socket.recv()
        if i >= 200:
            times.append(time.perf_counter() - start)
    return shared.round_trips(times)


def request(n: int) -> Values:
    """REQ/REP, two processes."""
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, _socket(context, zmq.REQ) as socket:
        address = f"ipc://{shared.socket_path(folder)}"
        with Partner("zmq-push", "serve", address) as partner:
            partner.answer()
            socket.connect(address)
            return _round_trips(socket, n)


def request_threads(n: int) -> Values:
    """REQ/REP, two threads of this process."""
    with zmq.Context() as context, _socket(context, zmq.REQ) as socket, _socket(context, zmq.REP) as other:
        other.bind("inproc://bench")
        thread = threading.Thread(target=_echo, args=(other, n + 200))
        thread.start()
        socket.connect("inproc://bench")
        values = _round_trips(socket, n)
        thread.join()
        return values


def _echo(socket: zmq.Socket[Any], n: int) -> None:
    for _ in range(n):
        socket.send(socket.recv())


def unheard(n: int) -> Values:
    """PUB without a subscriber."""
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context, _socket(context, zmq.PUB) as socket:
        socket.bind(f"ipc://{shared.socket_path(folder)}")
        return {"ns": shared.per_call_ns(lambda topic, body: socket.send_multipart((topic.encode(), body)), n)}


def partner(role: str, address: str, n: int, kind: str = "push") -> None:
    """The second process."""
    with zmq.Context() as context:
        if role == "serve":
            with _socket(context, zmq.REP) as socket:
                socket.bind(address)
                shared.tell(ready=1)
                poller = zmq.Poller()
                poller.register(socket, zmq.POLLIN)
                poller.register(0, zmq.POLLIN)
                while True:
                    # block in poll, as a server does that also has something else to hear
                    ready = dict(poller.poll())
                    if socket in ready:
                        socket.send(socket.recv())
                    elif ready:
                        return
        with _socket(context, zmq.PUSH if kind == "push" else zmq.PUB) as socket:
            socket.linger = -1
            socket.connect(address)
            send = _sender(socket, kind)
            shared.warm_up(send)
            start = time.monotonic()
            for _ in range(n):
                send(BODY)
            shared.tell(start=start, sent=time.monotonic())
            shared.wait_for_end()
            socket.linger = 0
