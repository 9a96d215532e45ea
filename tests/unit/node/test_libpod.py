"""Payloads, names, errors and log frames of the libpod protocol."""

from __future__ import annotations

import contextlib
import itertools
import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node import libpod
from codius_node.model import (
    Consumption,
    ContainerSpec,
    FoundState,
    Isolation,
    Json,
    Limits,
    ManifestHash,
    PodSpec,
)
from codius_node.rlimits import MAX_OPEN_FILES, MAX_PROCESSES, RLimit, clamp_rlimits, read_rlimits

HASH = ManifestHash("a2" * 26)
WEB = ContainerSpec("web", "nginx@sha256:00", ("nginx", "-g"), "/srv", {"A": "1"})
PLAIN = ContainerSpec("db", "quay.io/x/db:1@sha256:11", None, None, {})
SPEC = PodSpec(HASH, (WEB, PLAIN), Limits(memory=1024, vcpus=0.5, pids=7), IPv4Address("10.77.0.9"))
STAMP = "2026-01-02T03:04:05Z"


def build(container: ContainerSpec, runtime: str | None = None) -> dict[str, Json]:
    return libpod.build_container(
        container,
        SPEC,
        owner="codius",
        files=Path("/files"),
        rlimits=[RLimit("NOFILE", 100)],
        runtime=runtime,
        stop_timeout=2,
    )


# ---- payloads ------------------------------------------------------------------------------------


def test_the_limits_are_the_pod_s_and_swap_adds_nothing() -> None:
    assert libpod.build_pod(SPEC, owner="codius")["resource_limits"] == {
        "memory": {"limit": 1024, "swap": 1024},
        "cpu": {"period": 100_000, "quota": 50_000},
        "pids": {"limit": 7},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", f"codius-{HASH}"),
        ("infra_name", f"codius-{HASH}_infra"),
        ("hostname", HASH[:12]),
        ("labels", {"codius.owner": "codius", "codius.manifest": HASH}),
        ("netns", {"nsmode": "none"}),
        ("no_manage_hosts", True),
        ("no_manage_resolv_conf", True),
    ],
)
def test_a_pod_is_asked_for_with(key: str, value: Json) -> None:
    assert libpod.build_pod(SPEC, owner="codius")[key] == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", f"codius-{HASH}-web"),
        ("pod", f"codius-{HASH}"),
        ("image", "docker.io/library/nginx@sha256:00"),
        ("command", ["nginx", "-g"]),
        ("work_dir", "/srv"),
        ("env", {"A": "1"}),
        ("env_host", False),
        ("httpproxy", False),
        ("systemd", "false"),
        ("cap_drop", ["ALL"]),
        ("no_new_privileges", True),
        ("restart_policy", "on-failure"),
        ("restart_tries", 3),
        ("resource_limits", {"pids": {"limit": 7}}),
        ("log_configuration", {"driver": "k8s-file", "size": 1048576}),
        ("r_limits", [{"type": "NOFILE", "soft": 100, "hard": 100}]),
        ("healthconfig", {"Test": ["NONE"]}),
    ],
)
def test_a_container_is_asked_for_with(key: str, value: Json) -> None:
    assert build(WEB)[key] == value


def test_a_container_mounts_two_files_read_only_and_nothing_else() -> None:
    mounts = build(WEB)["mounts"]
    assert isinstance(mounts, list)
    found = [(mount["source"], mount["destination"]) for mount in mounts if isinstance(mount, dict)]
    assert found == [("/files/hosts", "/etc/hosts"), ("/files/resolv.conf", "/etc/resolv.conf")]
    assert all("ro" in mount["options"] for mount in mounts if isinstance(mount, dict))  # type: ignore[operator]


def test_what_a_manifest_leaves_out_is_the_image_s_own() -> None:
    assert not {"command", "work_dir", "oci_runtime", "annotations", "privileged"} & set(build(PLAIN))


def test_dangerous_capabilities_are_not_among_ours() -> None:
    assert not {"NET_RAW", "NET_ADMIN", "MKNOD", "AUDIT_WRITE", "SYS_ADMIN", "SYS_PTRACE"} & set(
        libpod.CAPABILITIES
    )


def test_gvisor_gets_its_annotations() -> None:
    payload = build(WEB, runtime="/usr/bin/runsc")
    assert payload["annotations"] == {
        "io.kubernetes.cri-o.ContainerType": "sandbox",
        "io.kubernetes.cri-o.SandboxID": "",
    }
    assert payload["oci_runtime"] == "/usr/bin/runsc"
    assert "annotations" not in build(WEB, runtime="crun")


def test_payloads_are_json() -> None:
    for payload in (libpod.build_pod(SPEC, owner="codius"), build(WEB), build(PLAIN)):
        assert json.loads(json.dumps(payload)) == payload


def test_a_pod_knows_itself_and_localhost() -> None:
    assert libpod.render_hosts(SPEC) == f"127.0.0.1 localhost\n10.77.0.9 {HASH[:12]}\n"
    assert libpod.render_resolv_conf(["192.0.2.1", "192.0.2.2"]) == (
        "nameserver 192.0.2.1\nnameserver 192.0.2.2\n"
    )
    assert libpod.render_resolv_conf([]).startswith("#")


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:1.2", "docker.io/library/nginx:1.2"),
        ("nginx@sha256:00", "docker.io/library/nginx@sha256:00"),
        ("nginx:1.2@sha256:00", "docker.io/library/nginx@sha256:00"),
        ("codius/app@sha256:00", "docker.io/codius/app@sha256:00"),
        ("quay.io/a/b:tag@sha256:00", "quay.io/a/b@sha256:00"),
        ("localhost/a:latest", "localhost/a:latest"),
        ("127.0.0.1:5000/a@sha256:00", "127.0.0.1:5000/a@sha256:00"),
        ("registry:5000/a/b:1@sha256:00", "registry:5000/a/b@sha256:00"),
    ],
)
def test_images_have_their_full_names(image: str, full: str) -> None:
    assert libpod.normalize_image(image) == full
    assert libpod.normalize_image(full) == full


@pytest.mark.parametrize("hash", ["", "../x", "a/b", "A", "a b", "a" * 64, "a\n"])
def test_what_is_no_hash_becomes_no_name(hash: str) -> None:
    with pytest.raises(ValueError, match="not a manifest hash"):
        libpod.pod_name("codius", ManifestHash(hash))


def test_no_member_can_take_the_infra_container_s_name() -> None:
    infra = libpod.infra_name("codius", HASH)
    assert not infra.startswith(libpod.member_name("codius", HASH, ""))


# ---- answers -------------------------------------------------------------------------------------


def listing(infra: str, *members: str, owner: str = "codius") -> bytes:
    containers = [{"Id": "i", "Names": "infra", "Status": infra}]
    containers += [{"Id": f"m{n}", "Names": f"c{n}", "Status": status} for n, status in enumerate(members)]
    labels = {"codius.owner": owner, "codius.manifest": HASH}
    return json.dumps([{"Id": "p", "InfraId": "i", "Labels": labels, "Containers": containers}]).encode()


@pytest.mark.parametrize(
    ("infra", "members", "state"),
    [
        ("running", ["running", "running"], FoundState.RUNNING),
        ("running", ["running", "exited"], FoundState.DEGRADED),
        ("running", ["created"], FoundState.DEGRADED),
        ("running", [], FoundState.DEGRADED),
        ("exited", ["running"], FoundState.DEGRADED),
        ("created", ["created"], FoundState.STOPPED),
        ("exited", ["exited", "exited"], FoundState.STOPPED),
        ("created", [], FoundState.STOPPED),
    ],
)
def test_a_pod_s_state_is_that_of_all_its_containers(
    infra: str, members: list[str], state: FoundState
) -> None:
    (pod,) = libpod.parse_pods(listing(infra, *members), owner="codius")
    assert pod.found.state is state
    assert pod.found.hash == HASH


def test_pods_of_others_are_left_out() -> None:
    assert libpod.parse_pods(listing("running", owner="other"), owner="codius") == []
    assert (
        libpod.parse_pods(b'[{"Id":"p","InfraId":"","Labels":null,"Containers":null}]', owner="codius") == []
    )
    assert libpod.parse_pods(b"null", owner="codius") == []


@given(
    st.binary()
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_nonsense_for_an_answer_is_a_value_error(body: bytes) -> None:
    for parse in (
        lambda: libpod.parse_pods(body, owner="codius"),
        lambda: libpod.parse_state(body),
        lambda: libpod.parse_info(body),
        lambda: libpod.parse_ids(body),
        lambda: libpod.parse_pull(body),
    ):
        with contextlib.suppress(ValueError):
            parse()
    assert len(libpod.parse_error(body)) <= libpod.MAX_ERROR + 3


def test_an_error_is_podman_s_message_on_one_line() -> None:
    assert libpod.parse_error(b'{"cause":"x","message":"no\\n such  pod","response":404}') == "no such pod"
    assert libpod.parse_error(b"plain") == "plain"


def test_secrets_are_taken_out_of_errors() -> None:
    assert libpod.redact("x=s3cret-longer y=s3cret", ["s3cret", "s3cret-longer"]) == "x=*** y=***"
    assert libpod.redact("a b", ["", "a"]) == "a b"


@pytest.mark.parametrize(
    ("line", "report"),
    [
        (b'{"stream":"Copying blob\\n"}', libpod.PullReport("Copying blob")),
        (b'{"error":"manifest unknown"}', libpod.PullReport("manifest unknown", failed=True)),
        (b'{"images":["0"],"id":"0"}', None),
    ],
)
def test_a_pull_s_line_says(line: bytes, report: libpod.PullReport | None) -> None:
    assert libpod.parse_pull(line) == report


# ---- log frames ----------------------------------------------------------------------------------


def frame(text: bytes, stream: int = 1, stamp: str = STAMP) -> bytes:
    body = stamp.encode() + b" " + text
    return bytes([stream, 0, 0, 0]) + len(body).to_bytes(4, "big") + body


def read(*chunks: bytes, cursor: libpod.LogCursor | None = None) -> list[tuple[str, str]]:
    parser = libpod.LogParser(cursor)
    lines = [line for chunk in chunks for line in parser.feed(chunk)]
    return lines + parser.flush()


def test_frames_become_lines_of_their_streams() -> None:
    data = frame(b"one\n") + frame(b"two\n", 2) + frame(b"\n") + frame(b"no newline")
    assert read(data) == [("stdout", "one"), ("stderr", "two"), ("stdout", ""), ("stdout", "no newline")]


def test_a_line_of_many_frames_is_put_together_per_stream() -> None:
    data = frame(b"a") + frame(b"x", 2) + frame(b"b\n") + frame(b"y\n", 2)
    assert read(data) == [("stdout", "ab"), ("stderr", "xy")]


def test_a_character_divided_between_frames_is_whole() -> None:
    data = "é".encode()
    assert read(frame(data[:1]) + frame(data[1:] + b"\n")) == [("stdout", "é")]
    assert read(frame(b"\xff\n")) == [("stdout", "\ufffd")]


@pytest.mark.parametrize("extra", [0, 1, libpod.MAX_LINE])
def test_a_line_is_never_longer_than_allowed(extra: int) -> None:
    lines = read(frame(b"x" * (libpod.MAX_LINE + extra) + b"\n"))
    assert [len(text) for _, text in lines] == [libpod.MAX_LINE] + ([extra] if extra else [])


entries = st.lists(
    st.tuples(
        st.sampled_from([1, 2]),
        st.one_of(st.binary(max_size=40), st.just(b"\n"), st.just(b"z" * (libpod.MAX_LINE - 1))),
    ),
    max_size=12,
)


@given(entries, st.lists(st.integers(0, 200_000), max_size=20))
def test_any_split_of_the_stream_gives_the_same_lines(
    entries: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(frame(text, stream) for stream, text in entries)
    points = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    chunks = [data[start:end] for start, end in itertools.pairwise(points)]
    assert read(*chunks) == read(data)


@given(entries)
def test_no_byte_is_lost_between_frames_and_lines(entries: list[tuple[int, bytes]]) -> None:
    data = b"".join(frame(text, stream) for stream, text in entries)
    for number, name in ((1, "stdout"), (2, "stderr")):
        written = b"".join(text for stream, text in entries if stream == number)
        expected = written.decode("latin-1").replace("\n", "")
        lines = [text for stream, text in read(data) if stream == name]
        if all(byte < 0x80 for byte in written):
            assert "".join(lines) == expected
        assert all(len(text) <= libpod.MAX_LINE for text in lines)


@given(st.binary())
def test_strangers_bytes_are_lines_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read(data)


def test_a_frame_too_large_to_be_true_is_refused() -> None:
    with pytest.raises(ValueError, match="not a log frame"):
        read(bytes([1, 0, 0, 0]) + (libpod.MAX_FRAME + 1).to_bytes(4, "big"))


LATER = "2026-01-02T03:04:06Z"
LOG = [
    (frame(b"a\n"), "a"),
    (frame(b"b\n"), "b"),
    (frame(b"c\n"), "c"),
    (frame(b"d\n", stamp=LATER), "d"),
    (frame(b"e\n", stamp=LATER), "e"),
]


@pytest.mark.parametrize("seen", range(len(LOG) + 1))
def test_a_log_is_taken_up_where_it_was_left(seen: int) -> None:
    first = libpod.LogParser()
    before = first.feed(b"".join(data for data, _ in LOG[:seen]))
    cursor = first.cursor
    # podman gives all entries of the cursor's second again
    since = cursor.stamp if cursor else ""
    again = [data for number, (data, _) in enumerate(LOG) if (STAMP if number < 3 else LATER) >= since]
    after = read(*again, cursor=cursor)
    assert [text for _, text in before + after] == [text for _, text in LOG]


def test_a_cursor_survives_a_reading_that_brought_nothing() -> None:
    cursor = libpod.LogCursor(STAMP, 2)
    assert libpod.LogParser(cursor).cursor == cursor
    assert libpod.LogParser().cursor is None


# ---- rlimits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hard", "expected"),
    [((20_000, 5000), (20_000, 5000)), ((10**7, 10**7), (MAX_OPEN_FILES, MAX_PROCESSES))],
)
def test_limits_are_no_higher_than_our_own(hard: tuple[int, int], expected: tuple[int, int]) -> None:
    limits = {limit.name: limit.value for limit in clamp_rlimits(open_files=hard[0], processes=hard[1])}
    assert (limits["NOFILE"], limits["NPROC"]) == expected
    assert limits["CORE"] == 0


def test_limits_of_this_process_can_be_read() -> None:
    limits = {limit.name: limit.value for limit in read_rlimits()}
    assert 0 < limits["NOFILE"] <= MAX_OPEN_FILES
    assert 0 < limits["NPROC"] <= MAX_PROCESSES


@pytest.mark.parametrize(
    ("runtime", "isolation"),
    [
        ("crun", Isolation.CONTAINER),
        ("runc", Isolation.CONTAINER),
        ("somebodys-own", Isolation.CONTAINER),
        ("runsc", Isolation.GVISOR),
        ("krun", Isolation.VM),
    ],
)
def test_a_runtime_is_of_a_class_and_an_unknown_one_of_the_weakest(
    runtime: str, isolation: Isolation
) -> None:
    assert libpod.classify_runtime(runtime) is isolation


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"Error": None, "Stats": [{"MemUsage": 5, "CPUNano": 7}]}, Consumption(5, 7)),
        ({"Error": None, "Stats": [{"MemUsage": 0, "CPUNano": 0}]}, None),
        ({"Error": None, "Stats": []}, None),
        ({"Error": None, "Stats": None}, None),
        ({"Error": {"message": "no cgroup"}, "Stats": [{"MemUsage": 5, "CPUNano": 7}]}, None),
    ],
)
def test_what_a_container_takes_is_read_where_podman_counts_it(
    answer: object, found: Consumption | None
) -> None:
    assert libpod.parse_stats(json.dumps(answer).encode()) == found


@pytest.mark.parametrize(
    "answer",
    ["[]", "5", "{", '{"Stats": 5}', '{"Stats": [5]}', '{"Stats": [{"MemUsage": -1, "CPUNano": 1}]}',
     '{"Stats": [{"MemUsage": true, "CPUNano": 1}]}', '{"Stats": [{"MemUsage": 1}]}'],
)  # fmt: skip
def test_counts_that_are_none_are_nonsense(answer: str) -> None:
    with pytest.raises(ValueError):
        libpod.parse_stats(answer.encode())
