"""The counters, and the text Prometheus reads."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from codius_proxy.access_log import MICRO
from codius_proxy.metrics import BUCKETS, MAX_PODS, OTHER, Metrics, sum_up
from codius_proxy.visit import Visit
from tests.unit.proxy.test_access_log import POD, visit

SAMPLE = re.compile(r'([a-z_]+)(?:\{([a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*)\})? ([0-9.]+)')


def samples(metrics: Metrics, connections: dict[int, int] | None = None) -> dict[str, float]:
    """Samples by name with labels, as a strict reader of the format finds them."""
    found: dict[str, float] = {}
    family = ""
    for line in metrics.render(connections or {}).splitlines():
        if line.startswith("# "):
            _, what, family, _ = line.split(" ", 3)
            assert what in {"HELP", "TYPE"}
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        assert match[1].startswith(family)
        key = f"{match[1]}{{{match[2]}}}" if match[2] else match[1]
        assert key not in found
        found[key.removeprefix("codius_proxy_")] = float(match[3])
    return found


def count(metrics: Metrics, *visits: Visit) -> None:
    metrics.add(sum_up(visits, 0.0))


def test_requests_are_counted_by_pod_and_code_and_refusals_by_reason() -> None:
    metrics = Metrics()
    count(metrics, visit(), visit(pod="api", status=201))
    count(metrics, visit(), visit(pod="", status=404, reason="no_pod"))
    metrics.count_accepted(3)
    metrics.count_turned_away({"handshake": 2})
    metrics.count_turned_away({"handshake": 1, "crowded": 5})
    metrics.count_lost(2)
    found = samples(metrics, {17: 4})
    assert found[f'requests_total{{pod="{POD}",code="200"}}'] == 2
    assert found['requests_total{pod="api",code="201"}'] == 1
    assert found['requests_total{pod="",code="404"}'] == 1
    assert found[f'received_bytes_total{{pod="{POD}"}}'] == 200
    assert found[f'sent_bytes_total{{pod="{POD}"}}'] == 4000
    assert found['refusals_total{reason="no_pod"}'] == 1
    assert found['turned_away_connections_total{reason="handshake"}'] == 3
    assert found['connections{worker="17"}'] == 4
    assert found["accepted_connections_total"] == 3
    assert found["lost_records_total"] == 2


@given(st.lists(st.floats(0, 20)))
def test_a_duration_is_in_every_bucket_that_is_not_below_it(durations: list[float]) -> None:
    metrics = Metrics()
    for duration in durations:
        count(metrics, visit(seconds=duration))
    found = samples(metrics)
    for bound in BUCKETS:
        assert found[f'request_duration_seconds_bucket{{le="{bound}"}}'] == sum(
            int(duration * MICRO) <= bound * MICRO for duration in durations
        )
    assert found['request_duration_seconds_bucket{le="+Inf"}'] == len(durations)
    assert found["request_duration_seconds_count"] == len(durations)
    assert abs(found["request_duration_seconds_sum"] - sum(durations)) < 1e-3


def test_a_tunnel_says_nothing_of_latency() -> None:
    metrics = Metrics()
    count(metrics, visit(status=101, seconds=3600))
    assert samples(metrics)["request_duration_seconds_count"] == 0


def test_however_many_pods_there_were_the_sums_are_right_and_the_series_bounded() -> None:
    metrics = Metrics()
    for number in range(3 * MAX_PODS):
        count(metrics, visit(pod=f"pod{number}", ended=float(number)))
    found = samples(metrics)
    requests = {key: value for key, value in found.items() if key.startswith("requests_total")}
    assert sum(requests.values()) == 3 * MAX_PODS
    assert len(requests) <= MAX_PODS + 1
    assert f'requests_total{{pod="pod{3 * MAX_PODS - 1}",code="200"}}' in requests
    assert requests[f'requests_total{{pod="{OTHER}",code="200"}}'] > MAX_PODS


def test_the_codes_a_pod_makes_up_are_counted_as_their_class_says() -> None:
    """RFC 9110 section 15: a code that is not known means x00 of its class."""
    metrics = Metrics()
    for status in range(100, 1000):
        count(metrics, visit(status=status))
    found = samples(metrics)
    requests = {key: value for key, value in found.items() if key.startswith("requests_total")}
    assert sum(requests.values()) == 900
    assert len(requests) < 100
    assert requests[f'requests_total{{pod="{POD}",code="404"}}'] == 1
    assert requests[f'requests_total{{pod="{POD}",code="700"}}'] == 100
