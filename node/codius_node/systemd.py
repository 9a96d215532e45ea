"""What the daemon tells systemd: sd_notify over its datagram socket."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send e.g. `READY=1`; nothing happens when no service manager is listening (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as error:  # who does not want to hear is no reason to stop serving
        logger.warning("the service manager at %s did not take %r: %s", address, state, error)
