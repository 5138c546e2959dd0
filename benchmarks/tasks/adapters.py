"""The peers behind one small interface; two workers everywhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

Function = Callable[..., Any]


class Adapter:
    """`submit` takes handles as arguments (dataflow); `result` waits for one handle."""

    module = ""
    tasks = 10_000
    dataflow = True
    maps = True

    def start(self) -> None:
        """Bring up two workers."""

    def stop(self) -> None:
        """Leave nothing running."""

    def submit(self, fn: Function, *args: Any) -> Any:
        """One task."""
        raise NotImplementedError

    def result(self, handle: Any) -> Any:
        """The value of one task."""
        return handle.result()

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        """The values of many tasks."""
        return [self.result(handle) for handle in handles]

    def map(self, fn: Function, n: int) -> int:
        """`fn` over `range(n)` in the peer's own bulk form; returns the number of values."""
        raise NotImplementedError


class Raskid(Adapter):
    """Raskid's blocking face."""

    module = "raskid"
    tasks = 20_000

    def start(self) -> None:
        import raskid

        self.stack = contextlib.ExitStack()
        self.rk = self.stack.enter_context(raskid.connect("local://?runners=2"))

    def stop(self) -> None:
        self.stack.close()

    def submit(self, fn: Function, *args: Any) -> Any:
        return self.rk.submit(fn, *args)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(self.rk.gather(handles))

    def map(self, fn: Function, n: int) -> int:
        return len(list(self.rk.gather(self.rk.map(fn, range(n)))))


class Executor(Adapter):
    """concurrent.futures executors take no futures as arguments: dataflow by callbacks in the client."""

    pool: Any

    def start(self) -> None:
        self.lock = threading.Lock()
        self.pool = self.make()

    def make(self) -> Any:
        """The executor itself."""
        raise NotImplementedError

    def stop(self) -> None:
        self.pool.shutdown()

    def submit(self, fn: Function, *args: Any) -> Any:
        needs = [arg for arg in args if isinstance(arg, Future)]
        if not needs:
            return self.pool.submit(fn, *args)
        out: Future[Any] = Future()
        left = len(needs)

        def arrived(_need: Future[Any]) -> None:
            nonlocal left
            with self.lock:
                left -= 1
                if left:
                    return
            real = [arg.result() if isinstance(arg, Future) else arg for arg in args]
            self.pool.submit(fn, *real).add_done_callback(lambda done: out.set_result(done.result()))

        for need in needs:
            need.add_done_callback(arrived)
        return out

    def map(self, fn: Function, n: int) -> int:
        return len(list(self.pool.map(fn, range(n), chunksize=100)))


class ProcessPool(Executor):
    """The standard library: the reference of every ratio."""

    module = "concurrent.futures"
    tasks = 20_000

    def make(self) -> Any:
        return ProcessPoolExecutor(2)


class Loky(Executor):
    """loky's re-usable executor."""

    module = "loky"

    def make(self) -> Any:
        from loky import get_reusable_executor

        return get_reusable_executor(max_workers=2)


class Joblib(Adapter):
    """joblib batches by itself and has neither futures nor dataflow."""

    module = "joblib"
    dataflow = False

    def start(self) -> None:
        from joblib import Parallel, delayed

        self.delayed = delayed
        self.stack = contextlib.ExitStack()
        self.parallel = self.stack.enter_context(Parallel(n_jobs=2))

    def stop(self) -> None:
        self.stack.close()

    def submit(self, fn: Function, *args: Any) -> Any:
        return self.delayed(fn)(*args)

    def result(self, handle: Any) -> Any:
        return self.parallel([handle])[0]

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(self.parallel(handles))

    def map(self, fn: Function, n: int) -> int:
        return len(self.parallel(self.delayed(fn)(i) for i in range(n)))


class Dask(Adapter):
    """dask.distributed on one machine."""

    module = "distributed"
    tasks = 1_500

    def start(self) -> None:
        from distributed import Client, LocalCluster

        logging.getLogger("distributed").setLevel(logging.ERROR)
        self.cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
        )
        self.client = Client(self.cluster)
        self.client.wait_for_workers(2)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def submit(self, fn: Function, *args: Any) -> Any:
        return self.client.submit(fn, *args, pure=False)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(list(handles)))

    def map(self, fn: Function, n: int) -> int:
        return len(self.client.gather(self.client.map(fn, range(n), pure=False)))


class Ray(Adapter):
    """ray tasks; ray has no bulk form for them."""

    module = "ray"
    tasks = 3_000
    maps = False

    def start(self) -> None:
        import ray

        self.ray = ray
        self.remote: dict[Function, Any] = {}
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=2**29,
            log_to_driver=False,
            logging_level="ERROR",
        )

    def stop(self) -> None:
        self.ray.shutdown()

    def submit(self, fn: Function, *args: Any) -> Any:
        remote = self.remote.get(fn)
        if remote is None:
            remote = self.remote[fn] = self.ray.remote(num_cpus=1)(fn)
        return remote.remote(*args)

    def result(self, handle: Any) -> Any:
        return self.ray.get(handle)

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return list(self.ray.get(list(handles)))


class Parsl(Adapter):
    """parsl's executor for many small tasks, with two workers of its own on this machine; it has no bulk form."""

    module = "parsl"
    tasks = 1_500
    maps = False

    def start(self) -> None:
        import parsl
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        logging.getLogger("parsl").setLevel(logging.ERROR)
        # It starts programs that were installed beside the interpreter by their names alone.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.python_app = parsl.python_app
        self.apps: dict[Function, Any] = {}
        self.folder = tempfile.TemporaryDirectory(prefix="parsl-")
        executor = HighThroughputExecutor(
            label="two", address="127.0.0.1", max_workers_per_node=2, cores_per_worker=1, encrypted=False,
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )  # fmt: skip
        self.kernel = parsl.load(
            parsl.Config(
                executors=[executor],
                strategy="none",
                run_dir=self.folder.name,
                initialize_logging=False,
                usage_tracking=0,
            )
        )

    def stop(self) -> None:
        self.kernel.cleanup()
        self.folder.cleanup()

    def submit(self, fn: Function, *args: Any) -> Any:
        app = self.apps.get(fn)
        if app is None:
            app = self.apps[fn] = self.python_app(fn)
        return app(*args)

    def result(self, handle: Any) -> Any:
        return handle.result()

    def gather(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.result() for handle in handles]


ADAPTERS: dict[str, type[Adapter]] = {
    "raskid": Raskid,
    "ppe": ProcessPool,
    "loky": Loky,
    "joblib": Joblib,
    "dask": Dask,
    "ray": Ray,
    "parsl": Parsl,
}
