"""The sample: an image of one static busybox that serves a page, and a manifest for it."""

from __future__ import annotations

from typing import Final

SAMPLE_NAME: Final = "codius-sample"
SAMPLE_PORT: Final = 8080
SAMPLE_SCRIPT: Final = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /www
/bin/busybox cat > /www/index.html <<END
$GREETING
This page comes from the pod $CODIUS_MANIFEST_HASH on $CODIUS_HOST.
END
echo "serving on port 8080"
exec /bin/busybox httpd -f -v -p 8080 -h /www
"""
SAMPLE_FILES: Final = {"/start": SAMPLE_SCRIPT.encode()}
"""Besides /bin/busybox, which every image of the harness has."""


def sample_manifest(image: str, *, name: str = "hello", secret: bool = False) -> dict[str, object]:
    """`{"manifest": …}` for the sample; `name` makes another hash. With `secret` it wants codiusvars.json."""
    environment = {"GREETING": "$GREETING" if secret else "hello, world"}
    if secret:
        environment["SECRET"] = "$SECRET"
    return {
        "manifest": {
            "name": name,
            "version": "1.0.0",
            "machine": "small",
            "port": str(SAMPLE_PORT),
            "debug": True,
            "containers": [
                {
                    "id": "web",
                    "image": image,
                    "command": ["/bin/busybox", "sh", "/start"],
                    "environment": environment,
                }
            ],
        }
    }
