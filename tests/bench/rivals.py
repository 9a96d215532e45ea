"""The reverse proxies the front door is measured beside, each configured for the same work.

All route 1000 host names to one origin, keep connections to it, write an access log through a buffer where
they can, and set X-Forwarded-For. One worker each, on one core.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

PROXY_CORE: Final = 0
"""Where the proxy under measurement runs, alone."""
LOAD_CORE: Final = 1
"""Where the origin and the load generator run."""
START_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.02
ROUTES: Final = 1000
ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
ZONE: Final = "host.example"


def pod_hash(number: int) -> str:
    """A manifest hash like no other."""
    digits = "".join(ALPHABET[number >> shift & 31] for shift in (10, 5, 0))
    return "p" * 49 + digits


def host_names() -> list[str]:
    return [f"{pod_hash(number)}.{ZONE}" for number in range(ROUTES)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server of the measurement keeps its files, and what it listens on and leads to."""

    directory: Path
    port: int
    origin: int
    certificate: Path | None = None  # certificate and key in one file; with it the port speaks TLS

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path


class Server:
    """A started server; its CPU time is that of its whole family of processes."""

    def __init__(
        self, name: str, command: Sequence[str], place: Place, *, cores: Sequence[int] = (PROXY_CORE,)
    ) -> None:
        self.name = name
        self.place = place
        self._log = (place.directory / "output.log").open("wb")
        self._process = subprocess.Popen(
            ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=place.directory,
            env={**os.environ, "HOME": str(place.directory)},
        )

    def wait(self) -> Self:
        """Until it accepts connections."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.place.port), 1.0).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    output = (self.place.directory / "output.log").read_text(errors="replace")
                    self.stop()
                    raise RuntimeError(f"{self.name} did not start: {output[-500:]}") from None
                time.sleep(POLL_SECONDS)
            else:
                return self

    def cpu(self) -> float:
        """Seconds of CPU time used so far."""
        return sum(map(_cpu_of, _family(self._process.pid)))

    def resident(self) -> float:
        """MiB of memory of all its processes; pages they share are counted in each."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(self._process.pid))
        return sum(pages) * resource.getpagesize() / 2**20

    def go_first(self, priority: int) -> None:
        """All its processes before whatever else wants their core, where we may decide that."""
        with suppress(PermissionError):
            for pid in _family(self._process.pid):
                os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(priority))

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def _cpu_of(pid: int) -> float:
    """Nanosecond accounting; the ticks of /proc/PID/stat are too coarse for a round."""
    return (
        sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9
    )


def origin(place: Place) -> Server:
    """nginx with two files, on the core of the load; below /changing no two answers are alike.

    What is sent to /upload is read to its end before it is answered.
    """
    (place.directory / "small").write_bytes(b"x" * 100)
    (place.directory / "large").write_bytes(os.urandom(1 << 20))
    text = f"""
daemon off; user root; worker_processes 1; pid {place.directory}/pid; error_log {place.directory}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; sendfile on; tcp_nopush on; {_nginx_paths(place)}
  server {{
    listen 127.0.0.1:{place.port} backlog=4096; root {place.directory};
    location /changing {{ alias {place.directory}/small; add_header X-Request-Id $request_id; }}
    location /upload {{
      client_body_buffer_size 1m; proxy_method GET; proxy_pass_request_body off;
      proxy_pass http://127.0.0.1:{place.port}/small;
    }}
  }}
}}
"""
    return Server("origin", _nginx(place, text), place, cores=(LOAD_CORE,)).wait()


def nginx(place: Place) -> Server:
    upstreams = "".join(
        f"upstream u{number} {{ server 127.0.0.1:{place.origin}; keepalive 128; }}\n"
        for number in range(ROUTES)
    )
    names = "".join(f"{host} u{number};\n" for number, host in enumerate(host_names()))
    tls = (
        f"ssl_certificate {place.certificate}; ssl_certificate_key {place.certificate};"
        " ssl_session_cache shared:s:10m;"
        if place.certificate
        else ""
    )
    text = f"""
daemon off; user root; worker_processes 1; pid {place.directory}/pid; error_log {place.directory}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {place.directory}/access.log combined buffer=64k flush=1s;
  keepalive_requests 1000000000; map_hash_bucket_size 128; map_hash_max_size 8192; {_nginx_paths(place)}
  map $http_upgrade $connection_value {{ default upgrade; '' ''; }}
  map $host $pod {{ hostnames; {names} }}
  {upstreams}
  server {{
    listen 127.0.0.1:{place.port} {"ssl " if place.certificate else ""}backlog=4096;
    {tls}
    location / {{
      proxy_pass http://$pod; proxy_http_version 1.1;
      proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header Connection $connection_value; proxy_set_header Upgrade $http_upgrade;
    }}
  }}
}}
"""
    return Server("nginx", _nginx(place, text), place).wait()


def haproxy(place: Place) -> Server:
    names = place.write("names.map", "".join(f"{h} u{n}\n" for n, h in enumerate(host_names())))
    backends = "".join(f"backend u{n}\n  server s 127.0.0.1:{place.origin}\n" for n in range(ROUTES))
    text = f"""
global
  nbthread 1
  maxconn 4096
  stats socket {place.directory}/admin.sock
  log {place.directory}/log.sock local0
defaults
  mode http
  log global
  option httplog
  option forwardfor
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout tunnel 1h
frontend f
  bind 127.0.0.1:{place.port}{f" ssl crt {place.certificate}" if place.certificate else ""}
  use_backend %[req.hdr(host),lower,map({names})]
{backends}
"""
    return Server("haproxy", ["haproxy", "-db", "-f", str(place.write("haproxy.cfg", text))], place).wait()


def caddy(place: Place) -> Server:
    names = "".join(f"    {h} 127.0.0.1:{place.origin}\n" for h in host_names())
    text = f"""{{
  admin off
  auto_https off
  storage file_system {place.directory}/caddy
}}
http://:{place.port} {{
  bind 127.0.0.1
  log {{
    output file {place.directory}/access.log
  }}
  map {{host}} {{pod}} {{
{names}    default unknown
  }}
  reverse_proxy {{pod}}
}}
"""
    config = place.write("Caddyfile", text)
    command = ["env", "GOMAXPROCS=1", "caddy", "run", "--adapter", "caddyfile", "--config", str(config)]
    return Server("caddy", command, place).wait()


HTTP_PROXY_JS: Final = """
const fs = require('fs'), http = require('http'), httpProxy = require('http-proxy');
const settings = JSON.parse(fs.readFileSync(process.argv[2]));
const log = fs.createWriteStream(settings.log);
const routes = new Map(settings.hosts.map(host => [host, 'http://127.0.0.1:' + settings.origin]));
const proxy = httpProxy.createProxyServer({xfwd: true, agent: new http.Agent({keepAlive: true})});
proxy.on('error', (error, request, response) => response.end && response.end());
const server = http.createServer((request, response) => {
  const line = () => request.method + ' ' + request.url + ' ' + response.statusCode + '\\n';
  response.on('finish', () => log.write(line()));
  proxy.web(request, response, {target: routes.get(request.headers.host)});
});
server.on('upgrade', (request, socket, head) =>
  proxy.ws(request, socket, head, {target: routes.get(request.headers.host)}));
server.listen(settings.port, '127.0.0.1');
"""


def http_proxy(place: Place) -> Server:
    """npm's http-proxy, which the original used; with a keep-alive agent, which the original did not use."""
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--silent", "http-proxy@1"],
        cwd=place.directory,
        check=True,
        capture_output=True,
        timeout=120,
    )
    settings = {
        "port": place.port, "origin": place.origin, "hosts": host_names(),
        "log": str(place.directory / "access.log"),
    }  # fmt: skip
    place.write("settings.json", json.dumps(settings))
    script = place.write("proxy.js", HTTP_PROXY_JS)
    return Server("node http-proxy", ["node", str(script), "settings.json"], place).wait()


def codius(place: Place, *, workers: int = 1, cores: Sequence[int] = (PROXY_CORE,)) -> Server:
    """Our own; see `tests.bench.front_door`."""
    command = [sys.executable, "-m", "tests.bench.front_door", str(place.directory), str(place.port)]
    command += [str(place.origin), str(place.certificate or ""), str(workers)]
    root = Path(__file__).parents[2]
    return Server("codius", ["env", f"--chdir={root}", *command], place, cores=cores).wait()


START: Final[Mapping[str, Callable[[Place], Server]]] = {
    "codius": codius,
    "nginx": nginx,
    "haproxy": haproxy,
    "caddy": caddy,
    "node http-proxy": http_proxy,
}
NEEDS: Final[Mapping[str, Sequence[str]]] = {
    "codius": (),
    "nginx": ("nginx",),
    "haproxy": ("haproxy",),
    "caddy": ("caddy",),
    "node http-proxy": ("node", "npm"),
}


def missing(name: str) -> list[str]:
    """The programs a rival lacks on this machine."""
    return [program for program in NEEDS[name] if shutil.which(program, path=_PATH) is None]


_PATH: Final = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _nginx(place: Place, text: str) -> list[str]:
    return ["/usr/sbin/nginx", "-p", str(place.directory), "-c", str(place.write("nginx.conf", text))]


def _nginx_paths(place: Place) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return " ".join(f"{kind}_temp_path {place.directory}/{kind};" for kind in kinds)
