"""The machine's figures, from the texts the kernel writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.hoststats import (
    Allowance,
    HostStats,
    Memory,
    constrain,
    parse_allowance,
    parse_load,
    parse_meminfo,
    parse_uptime,
)

GIB = 2**30
MEMINFO = """MemTotal:       16384000 kB
MemFree:         1000000 kB
MemAvailable:    8192000 kB
HugePages_Total:       0
Hugepagesize:       2048 kB
"""


def test_meminfo_is_counted_in_kibibytes() -> None:
    assert parse_meminfo(MEMINFO) == Memory(8192000 * 1024, 16384000 * 1024)


def test_an_old_kernel_without_MemAvailable_counts_what_is_free() -> None:
    assert parse_meminfo("MemTotal: 10 kB\nMemFree: 4 kB\n") == Memory(4096, 10240)


@pytest.mark.parametrize("text", ["", "MemTotal: 10 kB\n", "MemFree: 4 kB\n", "nonsense"])
def test_meminfo_without_its_lines_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="/proc/meminfo"):
        parse_meminfo(text)


@pytest.mark.parametrize(
    ("limit", "usage", "stat", "expected"),
    [
        ("max\n", "100\n", "", None),
        ("9223372036854771712\n", "100\n", "", None),
        ("1000\n", "600\n", "anon 1\ninactive_file 200\n", Allowance(1000, 400)),
        ("1000\n", "600\n", "inactive_file 1\ntotal_inactive_file 100\n", Allowance(1000, 500)),
        ("1000\n", "100\n", "inactive_file 200\n", Allowance(1000, 0)),
        ("1000\n", "100\n", "", Allowance(1000, 100)),
    ],
)
def test_the_limit_of_a_control_group(limit: str, usage: str, stat: str, expected: Allowance | None) -> None:
    assert parse_allowance(limit, usage, stat) == expected


def test_a_lower_limit_of_the_group_counts() -> None:
    machine = Memory(8 * GIB, 16 * GIB)
    assert constrain(machine, None) == machine
    assert constrain(machine, Allowance(32 * GIB, GIB)) == machine
    assert constrain(machine, Allowance(4 * GIB, GIB)) == Memory(3 * GIB, 4 * GIB)
    assert constrain(machine, Allowance(12 * GIB, GIB)) == Memory(8 * GIB, 12 * GIB)
    assert constrain(machine, Allowance(4 * GIB, 5 * GIB)) == Memory(0, 4 * GIB)


@given(
    available=st.integers(0, 2**50),
    total=st.integers(0, 2**50),
    limit=st.integers(0, 2**50),
    used=st.integers(0, 2**50),
)
def test_available_memory_is_never_negative_nor_more_than_there_is(
    available: int, total: int, limit: int, used: int
) -> None:
    memory = constrain(Memory(min(available, total), total), Allowance(limit, used))
    assert 0 <= memory.available <= memory.total <= total


def test_uptime_and_load() -> None:
    assert parse_uptime("2438.51 4000.11\n") == 2438.51
    assert parse_load("5.22 3.10 2.00 3/512 12345\n") == 5.22


def write_files(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        path = directory / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def test_a_node_in_a_container_sees_the_containers_limit(tmp_path: Path) -> None:
    proc = write_files(tmp_path / "proc", meminfo=MEMINFO, uptime="60.0 1\n", loadavg="0.5 0 0 1/1 1\n")
    second = write_files(
        tmp_path / "v2",
        memory_DOT_max=f"{4 * GIB}\n",
        memory_DOT_current=f"{GIB}\n",
        memory_DOT_stat="inactive_file 0\n",
    )
    first = write_files(
        tmp_path / "v1",
        memory__memory_DOT_limit_in_bytes=f"{2 * GIB}\n",
        memory__memory_DOT_usage_in_bytes=f"{GIB}\n",
        memory__memory_DOT_stat="total_inactive_file 0\n",
    )
    disk = tmp_path
    assert HostStats(disk, proc=proc, cgroup=second).memory() == (3 * GIB, 4 * GIB)
    assert HostStats(disk, proc=proc, cgroup=first).memory() == (GIB, 2 * GIB)
    stats = HostStats(disk, proc=proc, cgroup=tmp_path / "none")
    assert stats.memory() == (8192000 * 1024, 16384000 * 1024)
    assert (stats.uptime(), stats.load()) == (60.0, 0.5)


def test_free_disk_is_asked_where_the_directory_will_be(tmp_path: Path) -> None:
    free = HostStats(tmp_path / "not" / "yet").free_disk()
    stat = os.statvfs(tmp_path)
    assert free == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.05)


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    stats = HostStats(tmp_path)
    available, total = stats.memory()
    assert 0 < available <= total
    assert stats.uptime() > 0
    assert stats.load() >= 0
    assert stats.free_disk() > 0
