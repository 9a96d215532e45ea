"""What visitors are told when their request reaches no pod, or the pod fails them; one function a case."""

from __future__ import annotations

from typing import Final

from codius_proxy.pages import Refusal
from codius_proxy.routes import Notice
from codius_proxy.upstream import Failure, Fault

SHORTLY: Final = "Try again in a moment."


def unknown_name(hostname: str, zone: str, host: str) -> Refusal:
    return Refusal(
        421,
        f"{hostname} is not served here. This host serves {zone} and <manifest hash>.{zone}; "
        "a manifest hash has 52 characters of a-z and 2-7.",
        f"Check the name. This host is {host}",
        "unknown_name",
        "This name is not served here",
    )


def host_starting() -> Refusal:
    """No routes are known yet: an absent one says nothing."""
    return Refusal(
        503, "This host is starting and does not know its pods yet.", SHORTLY, "host_starting",
        "This host is starting", passing=True,
    )  # fmt: skip


def last_hop() -> Refusal:
    """An OPTIONS request that was to go no further: not a refusal, but an answer of ours."""
    return Refusal(
        200,
        "This is the front door; the request was to go no further.",
        "Leave out Max-Forwards.",
        "last_hop",
    )


def not_secure() -> Refusal:
    """RFC 9110 section 7.4: what is asked of an https resource may not have passed in the open."""
    return Refusal(
        421,
        "The request target says https, and the request did not come by it.",
        "Connect by https, or ask for the path alone.",
        "not_secure",
    )


def no_pod(pod: str, host: str) -> Refusal:
    return Refusal(
        404,
        f"There is no pod {pod} on this host: it was never uploaded, or its time is over.",
        f"Whoever has its manifest can upload it again to {host}",
        "no_pod",
        "There is no such pod",
    )


def pod_gone(pod: str, host: str) -> Refusal:
    """It was here a while ago."""
    return Refusal(
        404,
        f"The pod {pod} was on this host until a while ago: its time is over, or it was stopped.",
        f"Whoever has its manifest can upload it again to {host}",
        "pod_gone",
        "This pod is gone",
    )


def pod_stopped(pod: str, notice: Notice, host: str) -> Refusal:
    """The operator took it down: 410 (RFC 9110 15.5.11), or 451 where the law demanded it (RFC 7725)."""
    reason = f"Reason: {notice.reason}" if notice.reason else "The reason is not public."
    if notice.legal:
        return Refusal(
            451,
            f"The pod {pod} was taken down by the operator of this host on a legal demand. {reason}",
            f"Its operator answers for it: {host}",
            "pod_blocked",
            "This pod is not available for legal reasons",
            blocked_by=host,
        )
    return Refusal(
        410,
        f"The pod {pod} was taken down by the operator of this host. {reason}",
        f"Its operator answers for it: {host}",
        "pod_stopped",
        "This pod was taken down",
    )


def busy(name: str) -> Refusal:
    """`name` is the route's: a manifest hash, or `api`."""
    what, reason = ("The host's API", "api_busy") if name == "api" else ("This pod", "pod_busy")
    return Refusal(
        503, "Too many requests to it are waiting already.", SHORTLY, reason, f"{what} is overloaded"
    )


def host_crowded() -> Refusal:
    return Refusal(
        503, "This host has all the visitors it can serve.", SHORTLY, "host_crowded",
        "This host is overloaded",
    )  # fmt: skip


def moved_to(location: str) -> Refusal:
    return Refusal(
        308, f"This is served by https only: {location}", "Follow the address.", "https",
        "This is served by https", location=location,
    )  # fmt: skip


def explain_pod(failure: Failure) -> Refusal:
    match failure.fault:
        case Fault.REFUSED:
            return Refusal(
                503,
                "The pod is here, but nothing in it takes connections on the manifest's port.",
                "The pod may still be starting. If you own it: check `port` in its manifest, and its logs.",
                "pod_starting",
                "This pod is starting",
                passing=True,
            )
        case Fault.LIMITED:
            return Refusal(
                503, "This host is out of connections to its pods.", SHORTLY, "host_crowded",
                "This host is overloaded",
            )  # fmt: skip
        case Fault.TIMEOUT:
            return Refusal(
                504,
                f"The pod did not answer in time. {failure.detail}",
                "Try again later. If you own it: look at the pod's logs.",
                "pod_timeout",
                "This pod does not answer",
            )
        case Fault.GARBAGE:
            what, reason = "answered with something that is not HTTP", "pod_garbage"
        case Fault.LOST:
            what, reason = "did not answer", "pod_lost"
    return Refusal(
        502,
        f"The pod {what}. {failure.detail}",
        "Try again. If you own it: look at the pod's logs.",
        reason,
        "This pod does not answer",
    )


def explain_api(failure: Failure) -> Refusal:
    if failure.fault is Fault.GARBAGE or (failure.fault is Fault.LOST and not failure.untouched):
        return Refusal(
            502, f"The host's API did not answer properly. {failure.detail}", "Try again.", "api_lost"
        )
    if failure.fault is Fault.TIMEOUT:
        return Refusal(
            504, f"The host's API did not answer in time. {failure.detail}", "Try again later.", "api_timeout"
        )
    return Refusal(
        503,
        "The host's API is away. The pods are not concerned: they answer as before.",
        "It may be restarting: try again in a few seconds.",
        "api_away",
        "The host's API is away",
        passing=True,
    )
