"""`make bench`: every measurement, one after the other; prints them and writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table

from codius_node.podman_service import choose_runtime
from tests.bench import (
    api,
    changes,
    dns,
    hostile,
    loop,
    memory,
    network,
    packets,
    policy,
    proxy,
    reload,
    upload,
    workers,
)
from tests.harness.namespaces import missing_privilege
from tests.harness.podman_service import find_missing

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "benchmarks.md"
MAX_GROWTH: Final = 1.5
"""Of the time to attach a pod's network, from the fewest pods to the most: less is noise, so it is flat."""
BUSY_LOAD: Final = 0.7
"""Load average of the last minute above which the numbers come with a warning."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `good` is None where there is no target."""

    what: str
    measured: str
    target: str = ""
    good: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: ""}[self.good]


@dataclass(frozen=True, slots=True)
class Results:
    upload: upload.Measurement
    network: Sequence[network.Measurement]
    policy: policy.Measurement
    loop: loop.Measurement
    reload: reload.Measurement
    packets: packets.Measurement
    memory: memory.Measurement
    api: api.Measurement
    dns: dns.Measurement
    proxy: proxy.Measurement
    workers: workers.Scaling
    changes: changes.Measurement
    hostile: Sequence[hostile.Result]

    @property
    def growth(self) -> float:
        return self.network[-1].attach / self.network[0].attach


def rows(results: Results) -> list[Row]:
    """What the targets say, and what was measured."""
    uploads, pods = results.upload, results.network
    run = "podman run --publish" if uploads.published else "podman run --network=host"
    table = [
        Row("upload sent to first page, image present: p50", f"{uploads.upload:.0f} ms"),
        Row(f"`{run}` to first page: p50", f"{uploads.run:.0f} ms"),
        Row(
            "ratio of the two",
            f"{uploads.ratio:.2f}",
            f"at most {upload.TARGET_RATIO}",
            uploads.ratio <= upload.TARGET_RATIO,
        ),
    ]
    if uploads.published:
        table.append(
            Row(
                "`podman run --network=host`, which makes no network: p50, ratio",
                f"{median(uploads.bare):.0f} ms, {uploads.bare_ratio:.2f}",
            )
        )
    return [
        *table,
        Row(
            f"{len(uploads.at_once)} uploads at once: half of them, all of them answer",
            f"{median(uploads.at_once) / 1000:.1f} s, {max(uploads.at_once) / 1000:.1f} s",
            "all succeed",
            len(uploads.at_once) == upload.AT_ONCE,
        ),
        Row(
            f"attaching a pod's network at {_join(str(m.pods) for m in pods)} pods: median",
            f"{_join(f'{m.attach:.1f}' for m in pods)} ms",
            f"flat: growth at most {MAX_GROWTH}",
            results.growth <= MAX_GROWTH,
        ),
        Row(f"the same, from {pods[0].pods} to {pods[-1].pods} pods: growth", f"{results.growth:.2f}"),
        *_policy_rows(results.policy),
        *_loop_rows(results.loop),
        *_reload_rows(results.reload),
        *_packet_rows(results.packets),
        Row(
            "the whole host at rest: RSS of its processes together",
            f"{results.memory.rss:.0f} MiB",
            f"at most {memory.TARGET_MIB:.0f} MiB",
            results.memory.rss <= memory.TARGET_MIB,
        ),
        Row("the same, shared pages counted once: PSS", f"{results.memory.pss:.0f} MiB"),
        Row("podman's own service beside it: RSS", f"{results.memory.podman.rss:.0f} MiB"),
        Row(
            "polls of GET /pods a second, through the front door: median",
            f"{results.api.rate:.0f}",
            f"at least {api.TARGET}",
            results.api.rate >= api.TARGET,
        ),
        Row("the same, by those of a bare aiohttp handler with the same answer", f"{results.api.ratio:.2f}"),
        *(Row(*row) for row in dns.rows(results.dns)),
        *(
            Row(f"front door, {found.what}", f"{found.measured:.2f}", found.target, found.good)
            for found in (
                *proxy.verdicts(results.proxy),
                workers.verdict(results.workers),
                changes.verdict(results.changes),
                *hostile.verdicts(results.hostile),
            )
        ),
    ]


def _policy_rows(measured: policy.Measurement) -> Iterable[Row]:
    admissions = measured.admissions
    sizes = _join(str(a.pods) for a in admissions)
    flat = f"flat: growth at most {policy.TARGET_GROWTH}"
    for what, times, growth in (
        ("adding a pod's rules", [a.admit for a in admissions], measured.admit_growth),
        ("removing them, counters read", [a.evict for a in admissions], measured.evict_growth),
    ):
        yield Row(
            f"{what}, in a table of {sizes} pods: median, growth",
            f"{_join(f'{time:.2f}' for time in times)} ms, {growth:.2f}",
            flat,
            growth <= policy.TARGET_GROWTH,
        )


def _loop_rows(measured: loop.Measurement) -> Iterable[Row]:
    lag, watching = measured.lag, measured.watching
    for what, worst in (
        (f"while the table of {loop.PODS} pods is made anew {loop.RELOADS} times", lag.reload),
        (f"while all counters of {loop.PODS} pods are read {loop.RELOADS} times", lag.traffic),
        (f"while the walls are checked {loop.CHECKS} times", lag.check),
    ):
        yield Row(
            f"the event loop's worst lag {what}",
            f"{worst:.1f} ms",
            f"under {loop.TARGET_LAG:.0f} ms",
            worst < loop.TARGET_LAG,
        )
    yield Row("the same while nothing runs", f"{lag.idle:.1f} ms")
    yield Row(
        "watching the walls each second: share of one core; while somebody else's tables change each second",
        f"{watching.quiet / 10:.2f} %; {watching.busy / 10:.2f} %",
    )


def _reload_rows(measured: reload.Measurement) -> Iterable[Row]:
    busy, quiet = measured.busy, measured.quiet
    yield Row(
        f"packets lost in {2 * reload.RELOADS} reloads with {reload.PODS} pods, of those sent meanwhile",
        f"{busy.lost} of {busy.sent}, at {busy.rate:.0f} a second",
        f"0 under {reload.RATE} a second",
        busy.lost == 0 and busy.rate >= reload.LEAST_RATE,
    )
    yield Row("the same flows without a reload", f"{quiet.lost} of {quiet.sent}")
    for what, times in (("the whole table", measured.repairs), ("rules in place", measured.changes)):
        yield Row(
            f"a reload of {what} with {reload.PODS} pods, under these packets: median (worst)",
            f"{median(times):.0f} ms ({max(times):.0f} ms)",
            f"under {reload.TARGET_MS:.0f} ms",
            median(times) < reload.TARGET_MS,
        )


def _packet_rows(measured: packets.Measurement) -> Iterable[Row]:
    few, many = packets.SIZES
    for what, ratio, over in (
        ("of an established flow", measured.established_ratio, measured.established_over_bare),
        ("that begins a flow", measured.new_ratio, measured.new_over_bare),
    ):
        yield Row(
            f"CPU time of a 64-byte packet {what}, {many} pods against {few}",
            f"{ratio:.2f}",
            f"at most {packets.TARGET_RATIO}",
            ratio <= packets.TARGET_RATIO,
        )
        yield Row("the same, our rules against none at all", f"{over:.2f}")


def _join(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def describe_machine(load: float) -> dict[str, str]:
    """What the numbers depend on; `load` is the machine's own before we began."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    total = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    podman = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "CPU": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "memory": f"{int(total[1]) / 2**20:.0f} GiB" if total else "unknown",
        "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        "podman": f"{podman.split()[-1]}, runtime {choose_runtime()}",
        "Python": platform.python_version(),
        "load before": f"{load:.1f}{' (busy: only the ratios mean something)' if load > BUSY_LOAD else ''}",
    }


async def measure() -> Results:
    # the most delicate first: nothing else has warmed or tired the machine
    uploads = await upload.measure()
    resting = await memory.measure()
    return Results(
        upload=uploads,
        network=await network.measure(),
        policy=await policy.measure(),
        loop=await loop.measure(),
        reload=await reload.measure(),
        packets=await packets.measure(),
        memory=resting,
        api=await asyncio.to_thread(api.measure),
        dns=await asyncio.to_thread(dns.measure),
        proxy=await asyncio.to_thread(proxy.measure),
        workers=await asyncio.to_thread(workers.measure),
        changes=await changes.measure(),
        hostile=await asyncio.to_thread(hostile.measure),
    )


def as_document(results: Results, machine: dict[str, str]) -> dict[str, object]:
    return {
        "machine": machine,
        "upload": upload.as_document(results.upload),
        "network": network.as_document(results.network),
        "policy": policy.as_document(results.policy),
        "loop": loop.as_document(results.loop),
        "reload": reload.as_document(results.reload),
        "packets": packets.as_document(results.packets),
        "memory": memory.as_document(results.memory),
        "api": api.as_document(results.api),
        "dns": dns.as_document(results.dns),
        "proxy": proxy.as_document(results.proxy),
        "workers": workers.as_document(results.workers),
        "changes": changes.as_document(results.changes),
        "hostile": hostile.as_document(results.hostile),
        "missed": [row.what for row in rows(results) if row.good is False],
    }


ABOUT: Final = """\
# Benchmarks

Written by `make bench`, which takes about fifteen minutes and needs root. It measures in network
namespaces of its own, with a podman of its own; DNS and the front door on loopback, beside peers of their
own. Run it on a quiet machine, and read ratios before times: they are of rounds taken in turn, so that both
sides meet the machine in the same mood.
"""
ABOUT_UPLOAD: Final = """\
## Upload to first page

The clock runs from sending `POST /pods` to the first 200 of the pod's page, both through the front
door on connections that are open already; the page is asked for every millisecond. So it includes the
API, the database, podman, a network with its firewall, the feed and the front door.

Beside it `podman run --detach` of the same image on the same storage, from the start of the command
to the page. With `--publish` podman does what an upload does: a network namespace, a link, rules for
a port. With `--network=host` it makes no network at all, the least a container can cost; an upload
starts two containers (in podman's pods one holds the namespaces) and cannot come near that.
Alone: `python -m tests.bench.upload`.

Where an upload's time goes, by timing the calls of a node in one process:

| step | ms, median |
|---|---|
"""
ABOUT_NETWORK: Final = """
## A pod's network

Links, addresses, routes and firewall elements for one more pod while so many are there; `start` is a
restart of the node that adopts all of them. Alone: `python -m tests.bench.network`.

| pods | attach ms | detach ms | start ms |
|---|---|---|---|
"""
ABOUT_POLICY: Final = """
## The pods' rules

A table of each size in a host of its own, and one pod admitted to and evicted from each in turn. Alone:
`python -m tests.bench.policy`.

The event loop's lag is measured in a process that has loaded what a node has: a task on the loop wants
its turn every millisecond, and the lag is how much later than that it came at worst, while the network's
worker thread has its hands full. That process goes before others on the machine (SCHED_RR), so that the
lag is of our own making. A check of the walls counts in the process's CPU time. Alone:
`python -m tests.bench.loop`.

While rules are reloaded a pod sends numbered packets of 64 bytes to the internet, half of them of a flow
that was answered, half of one that never is, so that all rules judge each of them; the far end looks for
every number. Losses of the measurement itself show: the sender hears of packets its own queue drops, and
a receiver whose buffer overflows ends the run. Alone: `python -m tests.bench.reload`.

A packet's CPU time is that of the thread that sends it: over veth the kernel takes it through the host's
rules to the far end, where it is counted and dropped, within the sending thread's own system call, which
is included. One pod sends; the three hosts take turns, and a ratio is the median of the rounds' own.
Every limit of flows is on and out of reach, the brakes on bandwidth are off. Alone:
`python -m tests.bench.packets`.

| CPU ns a packet, median | established flow | new flow |
|---|---|---|
"""
ABOUT_MEMORY: Final = """
## Memory at rest

`codiusd run` after a pod with a private variable came up and every page was asked for, so that
everything is loaded. RSS counts shared pages in every process that has them; PSS divides them, and its
sum is what the machine would get back. Each further worker of the front door (`CODIUS_PROXY_WORKERS`)
adds one line. podman's service is not ours and stands apart. Alone: `python -m tests.bench.memory`.

| process | RSS MiB | PSS MiB |
|---|---|---|
"""
ABOUT_PROXY: Final = """
## The front door beside other reverse proxies

Microseconds of CPU per request, of all processes of a server together, and in brackets how many times
ours that is. One worker on one core; the origin (nginx) and the load (wrk, 64 connections) are on
another. Each has 1000 routes, time-outs, and an access log (HAProxy's goes to a socket nobody reads); ours
counts for its metrics as well. Where "every header differs", so do all answers: nothing that was read
before helps. A round measures each server for two seconds, one after the other, and the medians of seven
rounds count.
Alone: `python -m tests.bench.proxy`.

"""
ABOUT_WORKERS: Final = """
## More workers

The same load on a front door of one worker and on one of two, in turn, medians of seven rounds.
Alone: `python -m tests.bench.workers`.

"""
ABOUT_CHANGES: Final = """
## Changes of the routes

From the moment the node tells a new pod, or the end of one, until visitors of all four workers are answered
by it; 1000 pods are there before.
Alone: `python -m tests.bench.changes`.

"""
ABOUT_HOSTILE: Final = """
## Slow and hostile visitors

What 99 of 100 requests of an honest visitor take at most, one after the other on one connection, while
somebody attacks, and without that; medians of seven rounds in turn, and the ratio is that of the rounds. The
front door is one worker on one core; the attackers have the other one as far as the visitor and the pod leave
it to them.
Alone: `python -m tests.bench.hostile`; with `--door nginx` under the same attacks.

"""


def render(results: Results, machine: dict[str, str]) -> str:
    """docs/benchmarks.md."""
    resting = results.memory
    return "".join(
        (
            ABOUT,
            "\n| this machine | |\n|---|---|\n",
            *(f"| {name} | {value} |\n" for name, value in machine.items()),
            "\n| what | measured | target | |\n|---|---|---|---|\n",
            *(f"| {row.what} | {row.measured} | {row.target} | {row.verdict} |\n" for row in rows(results)),
            "\n",
            ABOUT_UPLOAD,
            *(f"| {name} | {time:.1f} |\n" for name, time in results.upload.phases.items()),
            ABOUT_NETWORK,
            *(f"| {m.pods} | {m.attach:.1f} | {m.detach:.1f} | {m.restart:.1f} |\n" for m in results.network),
            ABOUT_POLICY,
            *(
                f"| {name} | {median(cost.established):.0f} | {median(cost.new):.0f} |\n"
                for name, cost in (
                    (f"{packets.SIZES[0]} pod", results.packets.few),
                    (f"{packets.SIZES[1]} pods", results.packets.many),
                    ("no table: routing alone, nothing tracked", results.packets.bare),
                )
            ),
            ABOUT_MEMORY,
            *(f"| {p.name} | {p.rss:.1f} | {p.pss:.1f} |\n" for p in resting.processes),
            f"| **together** | {resting.rss:.1f} | {resting.pss:.1f} |\n",
            f"| {resting.podman.name} | {resting.podman.rss:.1f} | {resting.podman.pss:.1f} |\n",
            dns.render(results.dns),
            ABOUT_PROXY,
            proxy.render(results.proxy),
            ABOUT_WORKERS,
            workers.render(results.workers),
            ABOUT_CHANGES,
            changes.render(results.changes),
            ABOUT_HOSTILE,
            hostile.render(results.hostile),
        )
    )


def show(console: Console, results: Results) -> None:
    table = Table("what", "measured", "target", "", header_style="bold")
    for row in rows(results):
        colour = {True: "green", False: "red", None: ""}[row.good]
        table.add_row(row.what.replace("`", ""), row.measured, row.target, row.verdict, style=colour)
    console.print(table)
    steps = Table("where an upload's time goes", "ms", header_style="bold")
    for name, time in results.upload.phases.items():
        steps.add_row(name, f"{time:.1f}")
    console.print(steps)


def main() -> int:
    """Exit status 0 when every target is met."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if reason := missing_privilege() or ", ".join((*find_missing(), *dns.find_missing())):
        print(f"make bench: missing: {reason}; run `sudo make bench`", file=sys.stderr)
        return 1
    console = Console(stderr=options.json)
    if (load := os.getloadavg()[0]) > BUSY_LOAD:
        console.print(
            f"[yellow]The machine is busy (load {load:.1f}): only the ratios mean something.[/yellow]"
        )
    with console.status("measuring; about fifteen minutes"):
        results = asyncio.run(measure())
    machine = describe_machine(load)
    DOCUMENT.write_text(render(results, machine))
    if options.json:
        print(json.dumps(as_document(results, machine)))
    else:
        show(console, results)
        console.print(f"written: {DOCUMENT.name}", style="dim")
    return int(any(row.good is False for row in rows(results)))


if __name__ == "__main__":
    sys.exit(main())
