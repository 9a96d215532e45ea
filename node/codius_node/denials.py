"""The denylist in force: kept in the store, asked for each upload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from codius_node.errors import NotFoundError
from codius_node.model import Manifest, Pod
from codius_node.store import Store
from codius_node.takedown import Denial, DenialKind, Denylist, refuse

logger = logging.getLogger(__name__)


class Denials:
    """The operator's denylist, changed while the node runs: the store first, then what is asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._list = Denylist()
        self._lock = asyncio.Lock()  # one change at a time: store and memory must end with the same

    async def load(self) -> None:
        """Take up what was denied in earlier runs."""
        self._list = Denylist(await self._store.denials())

    async def put(self, denial: Denial) -> None:
        """From now on and across restarts, in place of an earlier one of the same name."""
        async with self._lock:
            await self._store.put_denial(denial)
            self._list.put(denial)
        logger.info("denied: %s %s (%s)", denial.kind, denial.value, denial.terms.reason)

    async def remove(self, kind: DenialKind, value: str) -> None:
        """NotFoundError when it is not there."""
        async with self._lock:
            if not await self._store.remove_denial(kind, value):
                raise NotFoundError(
                    f"the {kind} {value} is not on the denylist",
                    hint="`codiusd admin deny list` shows what is.",
                )
            self._list.remove(kind, value)
        logger.info("no longer denied: %s %s", kind, value)

    def all(self) -> Sequence[Denial]:
        """In the order in which they were put there."""
        return list(self._list)

    def check(self, manifest: Manifest) -> None:
        """DeniedError for a manifest that this host does not run."""
        if (denial := self._list.find(manifest)) is not None:
            raise refuse(denial)

    def find_takedown(self, manifest: Manifest) -> Denial | None:
        """The entry for which a pod of this manifest is taken down."""
        return self._list.find_takedown(manifest)

    def find_denied(self, pods: Iterable[Pod]) -> list[tuple[Pod, Denial]]:
        """Those that are to be taken down, and why."""
        found = ((pod, self._list.find_takedown(pod.manifest)) for pod in pods)
        return [(pod, denial) for pod, denial in found if denial is not None]
