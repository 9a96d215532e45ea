"""The operator's own rules of what pods reach: those of the settings, or others set at run time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, cast

from codius_netpolicy.policy import Egress, Policy
from codius_netpolicy.traffic import Reason
from codius_node.doors import Network
from codius_node.errors import CodiusError, NetworkError, RequestError, StoreError
from codius_node.model import Json
from codius_node.policy import Origin
from codius_node.store import Store

logger = logging.getLogger(__name__)

EGRESS_SETTING: Final = "egress"
"""The store's key of the rules set at run time."""


class RulesError(CodiusError):
    """The kernel or the disk did not take new rules; the old ones are in force."""

    status = 503


async def find_egress(store: Store, policy: Policy) -> Egress | None:
    """What was set in an earlier run, for this policy; None when nothing was, or it can no longer be used."""
    saved = await store.get_setting(EGRESS_SETTING)
    if saved is None:
        return None
    try:
        return parse_egress(saved, policy)
    except RequestError as error:
        logger.warning(
            "the rules set at run time cannot be used any more (%s): those of the settings are in force",
            error,
        )
        return None


def parse_egress(document: Json, policy: Policy) -> Egress:
    """Rules that go together with the rest of the policy; RequestError names the value that does not."""
    if not isinstance(document, dict):
        raise RequestError('the rules must be a JSON object, such as {"mode": "open"}')
    try:
        egress = Egress.from_document(cast("Mapping[str, object]", document))
        policy.with_egress(egress)
    except ValueError as error:
        raise RequestError(
            str(error), hint="`codiusd admin policy set --help` shows what rules there are."
        ) from error
    return egress


class EgressRules:
    """The rules in force, changed while pods run: the kernel first, then the store."""

    def __init__(
        self,
        *,
        network: Network,
        store: Store,
        own: Egress,
        chosen: Egress | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`own` are those of the settings, `chosen` those an earlier run left, which are in force already."""
        self._network = network
        self._store = store
        self._own = own
        self._origin = Origin.SETTINGS if chosen is None else Origin.RUN_TIME
        self._clock = clock
        self._lock = asyncio.Lock()  # one change at a time: kernel and store must end with the same

    @property
    def policy(self) -> Policy:
        """The one in force."""
        return self._network.policy

    @property
    def origin(self) -> Origin:
        """Where its rules come from."""
        return self._origin

    async def refused(self) -> Mapping[Reason, int]:
        """Packets, of the pods that run."""
        return await self._network.counters()

    async def change(self, document: Json) -> int:
        """From now on and across restarts; how many flows were cut. Whatever fails, the old rules stay."""
        egress = parse_egress(document, self.policy)
        async with self._lock:
            cut = await self._put(egress, Origin.RUN_TIME)
        logger.info("rules for the pods' network set: %s; %d flows cut", egress.as_document(), cut)
        return cut

    async def reset(self) -> int:
        """Back to the rules of the settings; how many flows were cut."""
        async with self._lock:
            cut = await self._put(self._own, Origin.SETTINGS)
        logger.info("rules for the pods' network are those of the settings again; %d flows cut", cut)
        return cut

    async def _put(self, egress: Egress, origin: Origin) -> int:
        before = self.policy.egress
        try:
            cut = await self._network.change(egress)
        except NetworkError as error:
            raise RulesError(
                f"the kernel did not take the rules, the old ones are in force: {error}", hint=error.hint
            ) from error
        try:
            await self._keep(egress, origin)
        except StoreError as error:
            # The next start would bring other rules than the operator sees now.
            with suppress(NetworkError):
                await self._network.change(before)
            now = (
                "the old ones are in force again"
                if self.policy.egress == before
                else "they end with the node"
            )
            raise RulesError(f"the rules cannot be kept, {now}: {error}", hint=error.hint) from error
        self._origin = origin
        return cut

    async def _keep(self, egress: Egress, origin: Origin) -> None:
        if origin is Origin.SETTINGS:
            await self._store.remove_setting(EGRESS_SETTING)
        else:
            document = cast(Json, egress.as_document())
            await self._store.set_setting(EGRESS_SETTING, document, now=self._clock())
