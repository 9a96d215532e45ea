"""What visitors are told: each case its own word for the operator, a heading and a way out for people."""

from __future__ import annotations

import pytest

from codius_proxy import pages, refusals
from codius_proxy.pages import REASONS, Refusal
from codius_proxy.routes import Notice
from codius_proxy.upstream import Failure, Fault

HOST = "https://host.example/"
POD = "a" * 52

CASES: dict[str, tuple[Refusal, int]] = {
    "host_starting": (refusals.host_starting(), 503),
    "host_crowded": (refusals.host_crowded(), 503),
    "unknown_name": (refusals.unknown_name("x.example", "host.example", HOST), 421),
    "no_pod": (refusals.no_pod(POD, HOST), 404),
    "pod_gone": (refusals.pod_gone(POD, HOST), 404),
    "pod_stopped": (refusals.pod_stopped(POD, Notice(False, "Malware."), HOST), 410),
    "pod_blocked": (refusals.pod_stopped(POD, Notice(True, ""), HOST), 451),
    "pod_busy": (refusals.busy(POD), 503),
    "api_busy": (refusals.busy("api"), 503),
    "pod_starting": (refusals.explain_pod(Failure(Fault.REFUSED, "")), 503),
    "pod_timeout": (refusals.explain_pod(Failure(Fault.TIMEOUT, "It slept.")), 504),
    "pod_lost": (refusals.explain_pod(Failure(Fault.LOST, "It left.")), 502),
    "pod_garbage": (refusals.explain_pod(Failure(Fault.GARBAGE, "No HTTP.")), 502),
    "api_away": (refusals.explain_api(Failure(Fault.REFUSED, "")), 503),
    "api_timeout": (refusals.explain_api(Failure(Fault.TIMEOUT, "It slept.")), 504),
    "api_lost": (refusals.explain_api(Failure(Fault.LOST, "It left.")), 502),
    "https": (refusals.moved_to(HOST), 308),
}


@pytest.mark.parametrize("label", CASES)
def test_each_case_has_its_word_its_status_and_a_way_out(label: str) -> None:
    refusal, status = CASES[label]
    assert (refusal.label, refusal.status) == (label, status)
    assert refusal.status in REASONS
    assert refusal.message.endswith((".", HOST))
    assert refusal.hint


def test_a_host_that_could_not_connect_does_not_blame_the_pod() -> None:
    refusal = refusals.explain_pod(Failure(Fault.LIMITED, ""))
    assert (refusal.label, refusal.title) == ("host_crowded", refusals.host_crowded().title)


def test_an_api_that_went_before_it_said_a_word_is_away() -> None:
    assert refusals.explain_api(Failure(Fault.LOST, "", untouched=True)).label == "api_away"


def test_only_what_will_be_over_soon_lets_a_page_ask_again() -> None:
    assert {label for label, (refusal, _) in CASES.items() if refusal.passing} == {
        "host_starting",
        "pod_starting",
        "api_away",
    }


def test_a_stopped_pods_reason_is_told_where_the_node_tells_it() -> None:
    assert "Reason: Malware." in CASES["pod_stopped"][0].message
    assert "The reason is not public." in CASES["pod_blocked"][0].message


def test_what_is_blocked_by_law_says_who_blocks_it() -> None:
    """RFC 7725 section 4."""
    blocked, stopped = (pages.render(CASES[label][0], html=False, head_only=True, close=False)
                        for label in ("pod_blocked", "pod_stopped"))  # fmt: skip
    assert blocked.startswith(b"HTTP/1.1 451 Unavailable For Legal Reasons\r\n")
    assert b'\r\nLink: <https://host.example/>; rel="blocked-by"\r\n' in blocked
    assert stopped.startswith(b"HTTP/1.1 410 Gone\r\n")
    assert b"Link:" not in stopped


def test_a_reason_cannot_make_a_page_do_anything() -> None:
    refusal = refusals.pod_stopped(POD, Notice(False, "<script>alert(1)</script>"), HOST)
    page = pages.render(refusal, html=True, head_only=False, close=False)
    assert b"<script>" not in page
    assert b"&lt;script&gt;alert(1)" in page
