"""One connection to the database and whose turn it is: transactions as methods, times as whole numbers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from codius_node.database import Connection, Row, query, reported
from codius_node.errors import StoreError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
SECOND: Final = 1_000_000
"""Microseconds."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Session:
    """The connection and its lock: one transaction at a time."""

    def __init__(self, connection: Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = asyncio.Lock()
        self._closed = False

    async def aclose(self) -> None:
        """Waits for the transaction that is under way; whoever comes later gets a StoreError."""
        async with self._lock:
            if self._closed:
                return
            self._closed = True
            with reported(self._path):
                await self._connection.close()

    async def _rows(self, sql: str, *values: str | bytes | int | None) -> Sequence[Row]:
        if self._closed:
            raise StoreError("the store is closed", hint="The node is stopping: ask again when it is back.")
        return await query(self._connection, sql, *values)


_S = TypeVar("_S", bound=Session)


def transaction(
    method: Callable[Concatenate[_S, _P], Awaitable[_T]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """All of the method's statements or none of them, and no other coroutine's in between."""

    async def whole(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        async with self._lock:
            with reported(self._path):
                try:
                    # IMMEDIATE: the write lock comes first, so that no read before a write can go stale.
                    await self._rows("BEGIN IMMEDIATE")
                    result = await method(self, *args, **kwargs)
                    await self._rows("COMMIT")
                except BaseException:
                    # Also for a caller who is cancelled, even twice: the rollback is in the connection's
                    # queue before anybody else's statement. Does nothing after a COMMIT that was reached,
                    # nor when SQLite has rolled back by itself, as on a full disk.
                    if not self._closed:
                        await self._connection.rollback()
                    raise
                return result

    functools.update_wrapper(whole, method)
    return whole


def reading(
    method: Callable[Concatenate[_S, _P], Awaitable[_T]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """Alone on the connection, so that nobody sees the middle of a transaction."""

    async def alone(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        async with self._lock:
            with reported(self._path):
                return await method(self, *args, **kwargs)

    functools.update_wrapper(alone, method)
    return alone


def to_micros(moment: datetime) -> int:
    """Whole microseconds since 1970; a naive datetime is a ValueError, for it names no moment."""
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return (moment - _EPOCH) // _MICROSECOND


def to_moment(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND
