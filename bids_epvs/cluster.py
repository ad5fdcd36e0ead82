"""Tasks on the workers of a Dask cluster that exists already (``--dask-scheduler``)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from bids_epvs import __version__
from bids_epvs.errors import EpvsError, TemporaryError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

OPTION = "--dask-scheduler"
CONNECT_S = 30
"""How long the scheduler may take to answer, and a worker to hand a result over, seconds."""
LOOK_S = 1.0
"""How often workers that came or went are looked for."""
TRIES = 2
"""Workers that a task may take down with it."""
T = TypeVar("T")
_ALONE = threading.Lock()
_SAME = "Scheduler and workers need the same Python and the same bids_epvs as this program."


def results(
    address: str, function: Callable[..., T], tasks: Sequence[tuple], names: Sequence[str]
) -> Iterator[T | TemporaryError]:
    """What a function returns for each task, in their order, computed by the workers, one at a time by each.

    Workers that come later take part. A task whose worker goes away is given to another one, `TRIES` times in all. When
    the iterator is closed, or left by an interruption, tasks at work end by themselves and no other begins.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tcp://node01:8786``.
    function : callable
        Importable on the workers.
    tasks : sequence of tuple
        Arguments of each call.
    names : sequence of str
        Of the tasks, for messages and Dask's dashboard.

    Yields
    ------
    object
        The result, or a TemporaryError where the workers went away that tried the task.

    Raises
    ------
    UsageError
        dask.distributed is not installed here, or scheduler or workers do not have this version of bids_epvs.
    TemporaryError
        The scheduler does not answer, at first or any more.
    """
    with connected(address) as client:
        sharing = _Sharing(client, function, tasks, names)
        try:
            for number in range(len(tasks)):
                while number not in sharing.done:
                    sharing.step()
                yield sharing.done.pop(number)
        finally:
            sharing.drop()


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the cluster; see `results`."""
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "dask.distributed is not installed.", where=OPTION, remedy="pip install 'bids_epvs[dask]'."
        ) from error
    try:
        asyncio.run(_greeted(address))
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise TemporaryError(
            f"no Dask scheduler answers at {address} ({error}).",
            where=OPTION,
            remedy="Start one with 'dask scheduler', or give its address, such as tcp://HOST:8786.",
        ) from error
    with client:
        yield client


async def _greeted(address: str) -> None:
    """Whether a scheduler answers (a client that finds none leaves its thread behind)."""
    from distributed import Security, connect

    comm = await connect(address, timeout=CONNECT_S, **Security().get_connection_args("client"))
    await comm.close()


class _Sharing:
    """Who works on what.

    Dask itself gives a worker as many tasks as it has threads, and a new worker what others cannot do soon; here each
    has one, as networks, libraries' threads and log files are those of a process.
    """

    def __init__(
        self, client: Client, function: Callable[..., Any], tasks: Sequence[tuple], names: Sequence[str]
    ) -> None:
        self.client, self.function, self.tasks, self.names = client, function, tasks, names
        self.run = uuid.uuid4().hex[:8]
        self.waiting = deque(range(len(tasks)))
        self.at_work: dict[str, tuple[int, Future]] = {}
        self.tries: Counter[int] = Counter()
        self.done: dict[int, Any] = {}
        self.warned = False

    def step(self) -> None:
        """Collect what is done, give workers without a task one, and wait a little if there is nothing to collect."""
        present = self._present()
        for worker, (number, future) in list(self.at_work.items()):
            if future.done():
                self._collect(worker, number, future)
            elif worker not in present:
                self._lost(worker, number, future)
        for worker, status in present.items():
            if self.waiting and worker not in self.at_work and status == "running":
                self._give(worker, self.waiting.popleft())
        if not any(future.done() for _, future in self.at_work.values()):
            time.sleep(LOOK_S)

    def drop(self) -> None:
        """Begin nothing more."""
        with suppress(Exception):  # a lost scheduler has nothing to drop
            self.client.cancel([future for _, future in self.at_work.values()])

    def _present(self) -> dict[str, str]:
        """Status of each worker by its address; see `statuses`."""
        try:
            found = self.client.run_on_scheduler(statuses)
        except (OSError, CancelledError) as error:
            raise self._gone(error) from error
        except Exception as error:
            raise _unable("the scheduler", error) from error
        if not self.warned and not set(found.values()) - {"paused"}:
            what = "all workers are paused, as their memory is nearly full" if found else "no worker is there"
            logger.warning("%s; waiting for one", what)
            self.warned = True
        return found

    def _give(self, worker: str, number: int) -> None:
        """One task to one worker."""
        name = self.names[number]
        logger.info("%s: given to %s", name, worker)
        future = self.client.submit(
            called,
            __version__,
            self.function,
            *self.tasks[number],
            key=f"{name}-{self.run}-{self.tries[number]}",
            workers=[worker],
            pure=False,
        )
        self.at_work[worker] = number, future

    def _collect(self, worker: str, number: int, future: Future) -> None:
        """The result of a task that has ended."""
        try:
            self.done[number] = future.result(timeout=CONNECT_S)
        except CancelledError as error:
            raise self._gone(error) from error
        except EpvsError:
            raise
        except Exception as error:  # subjects catch their own
            if future.status != "error":  # the worker went away with the result
                self._lost(worker, number, future)
                return
            raise _unable(f"the worker of {self.names[number]}", error) from error
        del self.at_work[worker]

    def _lost(self, worker: str, number: int, future: Future) -> None:
        """A worker went away."""
        del self.at_work[worker]
        future.cancel()
        self.tries[number] += 1
        if self.tries[number] < TRIES:
            logger.warning("%s: the worker %s went away; another one begins again", self.names[number], worker)
            self.waiting.appendleft(number)
        else:
            self.done[number] = TemporaryError(
                f"{TRIES} workers that tried it went away, most likely for lack of memory.",
                remedy="Give workers more memory (--memory-limit).",
            )

    def _gone(self, error: BaseException) -> TemporaryError:
        """The scheduler went away."""
        return TemporaryError(
            f"the Dask scheduler went away ({type(error).__name__}: {error}).",
            where=OPTION,
            remedy="Run again to resume.",
        )


def statuses(dask_scheduler: Any) -> dict[str, str]:
    """Status of each worker of a scheduler; a ``paused`` one, whose memory is nearly full, begins no task."""
    return {address: worker.status.name for address, worker in dask_scheduler.workers.items()}


def _unable(who: str, error: Exception) -> UsageError:
    """Something is not installed there."""
    return UsageError(f"{who} cannot do it ({type(error).__name__}: {error}).", where=OPTION, remedy=_SAME)


def called(version: str, function: Callable[..., T], *args: Any) -> T:
    """Call a function for a program of a version, which must be the one installed here; one call at a time.

    Raises
    ------
    UsageError
    """
    if version != __version__:
        raise UsageError(f"a worker has bids_epvs {__version__}, this is {version}.", where=OPTION, remedy=_SAME)
    with _ALONE:  # several programs may share a worker that has several threads
        return function(*args)
