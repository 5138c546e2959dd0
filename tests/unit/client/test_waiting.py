import asyncio
import threading

import pytest

from raskid.client.futures import Future
from raskid.client.waiting import result_in, result_of, take_steps, take_steps_in
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


def take_blocking(steps):
    return take_steps(steps)


def take_async(steps):
    return asyncio.run(take_steps_in(steps))


@pytest.mark.parametrize("take", [take_blocking, take_async])
def test_steps_are_given_results_and_errors_and_come_to_a_value(take):
    done, failed, never = (Future(Engine()) for _ in range(3))
    done.resolve_with(1)
    failed.fail_with(KeyError("2"))

    def steps():
        results = [(yield done, None, "the first")]
        try:
            yield failed, 5.0, "the second"
        except KeyError as error:
            results.append(error.args)
        with pytest.raises(WaitTimeout, match=r"the third within 0\.01 s"):
            yield never, 0.01, "the third"
        return results

    def no_steps():
        return "at once"
        yield

    def bad_steps():
        yield failed, None, "the second"

    assert take(steps()) == [1, ("2",)] and take(no_steps()) == "at once"
    with pytest.raises(KeyError, match="2"):
        take(bad_steps())


def test_steps_of_a_coroutine_that_is_cancelled_hear_of_it():
    heard = []

    def steps():
        try:
            yield Future(Engine()), None, "anything"
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async def main():
        task = asyncio.create_task(take_steps_in(steps()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert heard == ["cancelled"]
