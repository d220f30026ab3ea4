"""Processes of their own: for competitors, so that none pays for the imports of another, and for servers."""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, ParamSpec

from benchmarks.harness import Round

P = ParamSpec("P")

_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG. Source: https://man7.org/linux/man-pages/man2/pr_set_pdeathsig.2const.html"""

_SPAWN = multiprocessing.get_context("spawn")


def pin(core: int | None) -> None:
    """Keep this process on one core, where there are several and the system can do that."""
    if core is not None and hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > core:
        os.sched_setaffinity(0, {core})


def _begin(core: int | None) -> None:
    """Begin a process: on its core, and to end with the one that started it, however that ends."""
    pin(core)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        parent = multiprocessing.parent_process()
        if parent is not None and os.getppid() != parent.pid:
            sys.exit()  # it has gone before it could be heard of


@contextmanager
def apart(quick: bool, core: int | None = None) -> Iterator[Callable[..., Callable[[], Round]]]:
    """Yield a function that gives a competitor a process of its own: ``own(function, *args)`` returns what to call.

    The function and its arguments must be importable from there. It runs in the same process each round, which is
    kept on *core*. If only a quick look is wanted, everything runs here instead.
    """
    pools: list[ProcessPoolExecutor] = []

    def own(function: Callable[P, Round], *args: P.args, **kwargs: P.kwargs) -> Callable[[], Round]:
        call = partial(function, *args, **kwargs)
        if quick:
            return call
        pool = ProcessPoolExecutor(1, mp_context=_SPAWN, initializer=_begin, initargs=(core,))
        pools.append(pool)
        return lambda: pool.submit(call).result()

    try:
        yield own
    finally:
        for pool in pools:
            pool.shutdown()


def listener() -> socket.socket:
    """Return a socket that listens on a free port of this machine; a server process is given it."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listening.setblocking(False)
    return listening


@contextmanager
def serving(
    main: Callable[..., None], listening: socket.socket, *args: Any, core: int | None = None
) -> Iterator[Connection]:
    """Run ``main(listening, pipe, *args)`` in a process while the block runs; yield this end of the pipe.

    Clients may connect at once: they wait in the socket's queue until the server is ready. It is terminated at the
    end; close the socket yourself.
    """
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_pinned, args=(core, main, listening, there, *args), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        process.terminate()
        process.join()
        here.close()


@contextmanager
def server(main: Callable[..., None], *args: Any, core: int | None = None) -> Iterator[tuple[int, Connection]]:
    """Run ``main(listening, pipe, *args)`` in a process while the block runs; yield its port and the pipe."""
    listening = listener()
    port = int(listening.getsockname()[1])
    with serving(main, listening, *args, core=core) as pipe:
        listening.close()  # the process has it, or wants one of its own
        yield port, pipe


def _pinned(core: int | None, main: Callable[..., None], *args: Any) -> None:
    _begin(core)
    main(*args)
