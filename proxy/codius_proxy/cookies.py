"""A pod's cookies stay the pod's: none for the host's own domain, which every other pod would be sent too."""

from __future__ import annotations

import re
from typing import Final

# Attributes are what stands between semicolons, quoted or not: RFC 6265 section 5.2.
_DOMAIN: Final = re.compile(rb";[ \t]*domain[ \t]*=([^;]*)", re.IGNORECASE)
_POD: Final = re.compile(rb"\.?[a-z2-7]{52}\..*", re.IGNORECASE)


def keep_to_pod(line: bytes) -> bytes:
    """A Set-Cookie line without a Domain that reaches further than a pod's name: then only the pod's own
    host name gets it back. What browsers accept is the name itself or one above it, and above is us.
    """
    return _DOMAIN.sub(lambda found: found[0] if _POD.fullmatch(found[1].strip(b" \t")) else b"", line)
