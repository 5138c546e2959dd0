"""A feature of your own: a service with a process of its own, and what `rk.<name>` gives to those who use it.

Run `python examples/service.py`. Nothing of Raskid has to be changed for this, nor for replacing a part of it: at the
end another recorder takes the place of the built-in one.
"""

import json
import os
import tempfile

import raskid


class Board:
    """The service: keeps the points of players, publishes each one's new sum, and knows who is best."""

    def __init__(self, session, topic):
        self.session = session
        self.topic = topic
        self.points = {}
        session.serve("board/add", self.add)
        session.serve("board/best", self.best)

    def add(self, player, points):
        self.points[player] = self.points.get(player, 0) + points
        self.session.publish(self.topic, player, self.points[player])

    def best(self, count):
        return sorted(self.points.items(), key=lambda item: -item[1])[:count]


class BoardExtension(raskid.Extension):
    """The extension: `rk.board`."""

    service = Board

    def add(self, player, points):
        self.session.request("board/add", player, points)

    def best(self, count=3):
        return self.session.request("board/best", count)


class JsonRecorder(raskid.Extension):
    """Takes the place of `rk.recorder`: writes lines of JSON."""

    class service:
        def __init__(self, session, topics, path):
            self.file = open(path, "x", buffering=1)  # noqa: SIM115 - closed with the process
            self.subscriptions = [session.subscribe(topic, self.write) for topic in topics]

        def write(self, message):
            self.file.write(json.dumps([message.topic, *message.args]) + "\n")

        def close(self):
            for subscription in self.subscriptions:
                subscription.close()

    def start(self, name, topics, path):
        self.session.start_service(name, JsonRecorder.service, topics=topics, path=path)

    def stop(self, name):
        self.session.stop_service(name)


raskid.register("board", BoardExtension)
raskid.register("recorder", JsonRecorder)

with raskid.connect("local://?runners=1") as rk, tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "points.json")
    rk.board.start(topic="board/points")
    rk.recorder.start("run1", ["board/points"], path)
    for player, points in [("Ann", 3), ("Bob", 5), ("Ann", 4), ("Eve", 1)]:
        rk.board.add(player, points)
    print("services:", ", ".join(one["name"] for one in rk.services()))
    rk.recorder.stop("run1")
    with open(path) as file:
        print("recorded:", *file.read().splitlines())
    print("best:", rk.board.best(2))
