import os
import shutil
import tempfile

import pytest

import raskid


@pytest.fixture(scope="module", autouse=True)
def runtime():
    """A runtime directory of this file's own, with a path short enough for unix sockets."""
    directory = tempfile.mkdtemp(prefix="rk", dir="/tmp")
    before = os.environ.get("RASKID_RUNTIME")
    os.environ["RASKID_RUNTIME"] = directory
    yield directory
    if before is None:
        del os.environ["RASKID_RUNTIME"]
    else:
        os.environ["RASKID_RUNTIME"] = before
    left = os.listdir(directory)
    shutil.rmtree(directory, ignore_errors=True)
    assert left == []


@pytest.fixture(scope="module")
def rk(runtime):
    """A system with two runners that the tests of one file share."""
    with raskid.connect("local://?runners=2") as session:
        yield session


@pytest.fixture
def own():
    """A system with two runners for one test, which may break it."""
    session = raskid.connect("local://?runners=2")
    yield session
    session.close()
