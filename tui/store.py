"""The history database behind one thread, so that no disk write ever runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..engine.types import LmtopError
from .history import RETRY_S, History

T = TypeVar("T")


class Store:
    """Calls on one `History`, in order, on one thread. `failed` is told what is not saved, once per reason."""

    def __init__(self, path: Path | None, failed: Callable[[str], None], require: bool = False) -> None:
        self._path = path
        self._require = require
        self._failed = failed
        self._told: set[str] = set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="lmtop-history")
        self.history: History

    async def open(self) -> History:
        """Open the database. Raises: HistoryError."""
        loop = asyncio.get_running_loop()
        self.history = await self.call(History.open, self._path, self._require)

        def saving_changed(text: str) -> None:
            loop.call_soon_threadsafe(self._saving_changed, text)

        self.history.notify = saving_changed
        if self.history.notice:
            self._failed(self.history.notice)
        return self.history

    def _saving_changed(self, text: str) -> None:
        self._failed(text)
        self._retry()

    def _retry(self) -> None:
        if self.history.unsaved:
            self.post(self.history.retry)
            asyncio.get_running_loop().call_later(RETRY_S, self._retry)

    async def call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `method` there and wait for its result."""
        return await asyncio.wrap_future(self._executor.submit(method, *args, **kwargs))

    async def attempt(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Like `call`, but a failure is reported and gives None: a chat goes on without its history."""
        try:
            return await self.call(method, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - sqlite, disk, decoding: the conversation must survive all of them
            self._report(error)
            return None

    def post(self, method: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Run `method` there some time soon; failures are reported."""
        loop = asyncio.get_running_loop()

        def done(future: Future[object]) -> None:
            error = future.exception()
            if error is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._report, error)

        self._executor.submit(method, *args, **kwargs).add_done_callback(done)

    def _report(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, LmtopError) else f"not saved: {error}"
        if text not in self._told:
            self._told.add(text)
            self._failed(text)

    @property
    def is_open(self) -> bool:
        return hasattr(self, "history")

    async def close(self) -> None:
        """Everything posted is written, then the database is closed."""
        if self.is_open:
            await self.attempt(self.history.close)
        self._executor.shutdown(wait=False)

    def close_now(self) -> None:
        """Like `close` where no event loop will run any more; blocks."""
        if self.is_open:
            self._executor.submit(self.history.close)
        self._executor.shutdown(wait=True)
