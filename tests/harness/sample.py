"""The sample: an image of one static busybox that serves a page, and manifests for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

SAMPLE_NAME: Final = "codius-sample"
SAMPLE_PORT: Final = 8080
BUSYBOX: Final = "/bin/busybox"
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
SOCKET_SCRIPT: Final = r"""#!/bin/busybox sh
# One WebSocket connection on stdin and stdout: every short message comes back as it was.
b=/bin/busybox
byte() { $b dd bs=1 count=1 2>/dev/null | $b hexdump -v -e '1/1 "%d"'; }
while IFS= read -r line; do
    line=$(printf %s "$line" | $b tr -d '\r')
    [ -n "$line" ] || break
    case "$line" in
        [Ss]ec-[Ww]eb[Ss]ocket-[Kk]ey:*) key=$(printf %s "${line#*:}" | $b tr -d ' ') ;;
    esac
done
accept=$(printf %s "${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11" | $b sha1sum | $b cut -c1-40 |
    $b xxd -r -p | $b base64)
printf 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
printf 'Sec-WebSocket-Accept: %s\r\n\r\n' "$accept"
while first=$(byte) && [ -n "$first" ]; do
    length=$(($(byte) & 127))
    set -- "$(byte)" "$(byte)" "$(byte)" "$(byte)"
    text= count=0
    while [ $count -lt $length ]; do
        eval "mask=\$$((count % 4 + 1))"
        text="$text\\x$(printf %x $(($(byte) ^ mask)))"
        count=$((count + 1))
    done
    printf "\\x$(printf %x "$first")\\x$(printf %x $length)$text"
done
"""
SAMPLE_FILES: Final = {"/start": SAMPLE_SCRIPT.encode(), "/socket": SOCKET_SCRIPT.encode()}
"""Besides /bin/busybox, which every image of the harness has."""
START: Final = (BUSYBOX, "sh", "/start")
SERVE_SOCKETS: Final = (BUSYBOX, "nc", "-ll", "-p", str(SAMPLE_PORT), "-e", "/socket")


def sample_manifest(image: str, *, name: str = "hello", secret: bool = False) -> dict[str, object]:
    """`{"manifest": …}` for the sample; `name` makes another hash. With `secret` it wants codiusvars.json."""
    environment = {"GREETING": "$GREETING" if secret else "hello, world"}
    if secret:
        environment["SECRET"] = "$SECRET"
    return manifest_of(sample_container(image, environment=environment), name=name)


def sample_container(
    image: str,
    command: Sequence[str] = START,
    *,
    id: str = "web",
    environment: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """A container as it stands in a manifest."""
    container: dict[str, object] = {"id": id, "image": image, "command": list(command)}
    if environment:
        container["environment"] = dict(environment)
    return container


def manifest_of(*containers: dict[str, object], name: str) -> dict[str, object]:
    """`{"manifest": …}` with these containers, one of them listening on the sample's port."""
    return {
        "manifest": {
            "name": name,
            "version": "1.0.0",
            "machine": "small",
            "port": str(SAMPLE_PORT),
            "debug": True,
            "containers": list(containers),
        }
    }
