import asyncio
import threading

import pytest

from raskid.client.futures import Future
from raskid.client.waiting import result_in, result_of
from raskid.model.errors import WaitTimeout


class Engine:
    loop = None
    lock = threading.RLock()
    stepping = None

    def wait_for(self, future, timeout):
        return future.done()

    def call_soon(self, function, *args):
        function(*args)

    def settle(self):
        pass


def wait_blocking(future):
    return result_of(future, 0.01, "nothing came")


def wait_async(future):
    return asyncio.run(result_in(future, 0.01, "nothing came"))


@pytest.mark.parametrize("wait", [wait_blocking, wait_async])
def test_a_wait_says_what_did_not_come(wait):
    future = Future(Engine())
    with pytest.raises(WaitTimeout, match=r"nothing came within 0\.01 s"):
        wait(future)
    future.resolve_with(3)
    assert wait(future) == 3


@pytest.mark.parametrize("wait", [wait_blocking, wait_async])
def test_a_limit_that_ran_out_elsewhere_is_told_as_it_is(wait):
    future = Future(Engine())
    future.fail_with(WaitTimeout("the other end's limit"))
    with pytest.raises(WaitTimeout, match="the other end's limit"):
        wait(future)
