"""The report of runs that still train: the same page, and JSON that its curves are drawn from.

`/` is the page, `/data.json` what changes. Maps and views are made once a run's networks are
written, in a thread, while the page already shows the rest.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import RunFiles, read
from .looked import Asked, Looked, look
from .page import news, render

if TYPE_CHECKING:
    from starlette.applications import Starlette

WATCHED = ("run.json", "done.json", "results.json", "initial/config.json", "backbone/config.json")


class Live:
    """Runs as they stand now, and the newest of what takes time to make."""

    def __init__(self, folders: Sequence[Path], asked: Asked) -> None:
        self.folders, self.asked = list(folders), asked
        self.looked, self.shown = Looked(), "0"
        self.begun: tuple[float, ...] = ()
        self.working = threading.Lock()

    def page(self) -> str:
        return render(self.runs(), self.looked, self.shown)

    def data(self) -> dict[str, Any]:
        return {**news(self.runs()), "version": self.shown}

    def runs(self) -> list[RunFiles]:
        """The runs as their files say; looks at their pictures again where there is more to see."""
        runs, stamp = read(self.folders), self._stamp()
        if stamp != self.begun and self.working.acquire(blocking=False):
            self.begun = stamp
            threading.Thread(target=self._look, args=(runs,), daemon=True).start()
        return runs

    def _look(self, runs: list[RunFiles]) -> None:
        try:
            self.looked = look(runs, self.asked)
            self.shown = str(int(self.shown) + 1)
        finally:
            self.working.release()

    def _stamp(self) -> tuple[float, ...]:
        paths = [folder / name for folder in self.folders for name in WATCHED]
        return tuple(p.stat().st_mtime if p.exists() else 0.0 for p in paths)


def application(live: Live, hosts: Sequence[str]) -> Starlette:
    """What answers requests; only those addressed to `hosts`, so that no other site reads along."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Route

    def page(request: Any) -> HTMLResponse:
        return HTMLResponse(live.page().encode("utf-8", "replace"))

    def data(request: Any) -> JSONResponse:
        return JSONResponse(live.data())

    def gone(request: Any, error: Exception) -> PlainTextResponse:
        return PlainTextResponse(str(error), status_code=503)

    return Starlette(
        routes=[Route("/", page), Route("/data.json", data)],
        exception_handlers={ValueError: gone},  # the run is being replaced
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError where the address cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"setting port: {port} is not within 0..65535; 0 takes any free one")
    try:
        socket.getaddrinfo(host, port)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except socket.gaierror:
        raise ValueError(
            f"setting host: {host!r} is unknown; 127.0.0.1 is this machine, 0.0.0.0 all networks"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0].lower()
        raise ValueError(
            f"settings host and port: {host}:{port} cannot be had ({reason}); try --port 0"
        ) from None


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(folders: Sequence[Path], host: str, port: int, asked: Asked) -> None:
    """Answer until interrupted."""
    try:
        import uvicorn
    except ImportError:
        raise ValueError(
            "serve needs uvicorn and starlette; pip install 'saccade[serve]'"
        ) from None
    read(folders)  # a wrong folder is said before anything listens
    with bind(host, port) as listening:
        place = listening.getsockname()[1]
        hosts = [host, "localhost", "127.0.0.1", "[::1]"] if loopback(host) else ["*"]
        name = f"[{host}]" if ":" in host else host
        print(f"saccade: http://{name}:{place}/ (Ctrl-C stops)", file=sys.stderr, flush=True)
        if not loopback(host):
            print("saccade: everybody on that network can read this", file=sys.stderr, flush=True)
        app = application(Live(folders, asked), hosts)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
