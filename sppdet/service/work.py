"""A fixed number of threads for detection, and the requests that wait for one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sppdet.service.limits import Limits, Refused, busy
from sppdet.service.uploads import Gone

T = TypeVar("T")


class Workers:
    """Runs functions in threads, for coroutines of one event loop.

    A thread can't be stopped: a function that takes longer than the limit keeps its thread until it
    returns, and the next one waits. So there are never more threads at work than `limits.workers`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.workers, thread_name_prefix="detect")
        self._slots = asyncio.Semaphore(limits.workers)
        self._seconds = 1.0  # that a function takes, averaged over the last ones
        self.waiting = 0
        self.running = 0

    async def run(self, function: Callable[[], T], gone: Awaitable[Any]) -> T:
        """Run a function in a thread as soon as one is free.

        Args:
            gone: ends when nobody waits for the result any more.

        Raises:
            Refused: 503 where too many wait or no thread was free in time, 504 where it took too long.
            Gone: `gone` has ended; a function that didn't run yet never does.
        """
        timeout = self._limits.timeout
        left = asyncio.ensure_future(gone)
        try:
            await self._take_slot(left)
            loop = asyncio.get_running_loop()
            self.running += 1
            began = time.monotonic()
            work = loop.run_in_executor(self._pool, function)
            work.add_done_callback(lambda done: self._free_slot(done, began))
            # both go on after this call if they haven't ended
            await asyncio.wait((work, left), timeout=timeout, return_when=_FIRST)
            if work.done():
                return work.result()
            if left.done():
                raise Gone
            raise Refused(504, f"the detection takes longer than {timeout:g} s")
        finally:
            left.cancel()

    def close(self) -> None:
        """End the threads when they have nothing to do; functions at work are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _take_slot(self, left: asyncio.Future[Any]) -> None:
        if self._slots.locked() and self.waiting >= self._limits.queue:
            raise busy(self._seconds * (self.waiting + 1) / self._limits.workers)
        slot = asyncio.ensure_future(self._slots.acquire())
        self.waiting += 1
        try:
            await asyncio.wait((slot, left), timeout=self._limits.timeout, return_when=_FIRST)
            if left.done():
                raise Gone
            if not slot.done():
                raise busy(self._limits.timeout)
        except BaseException:
            if slot.done() or not slot.cancel():
                self._slots.release()
            raise
        finally:
            self.waiting -= 1

    def _free_slot(self, work: asyncio.Future[Any], began: float) -> None:
        self.running -= 1
        self._slots.release()
        self._seconds += 0.2 * (time.monotonic() - began - self._seconds)
        if not work.cancelled():
            work.exception()  # of a function that nobody waited for, asyncio would print it


_FIRST = asyncio.FIRST_COMPLETED
