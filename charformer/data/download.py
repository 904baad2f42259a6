"""The download of one file over HTTPS into the cache, complete and checked or not at all."""

import hashlib
import http.client
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from charformer.errors import UserError
from charformer.files import atomic_path, make_folder

CONNECT_SECONDS = 10.0
STALL_SECONDS = 10.0
LONGEST_SECONDS = 300.0  # in all: a server may keep sending small pieces
LARGEST = 64 * 2**20


class NoConnectionError(UserError):
    """An error for a server that cannot be reached, or that breaks off the transfer."""


def fetch(url: str, sha256: str, path: Path, on_progress: Callable[[int, int | None], None]) -> None:
    """Download ``url`` to ``path``, calling ``on_progress(bytes so far, bytes in all or None)``.

    Raises NoConnectionError if no answer comes within ``CONNECT_SECONDS`` in all (name look-up, every address and
    redirects together), the answer redirects to another host, or the transfer breaks off or takes longer than
    ``LONGEST_SECONDS``. Raises UserError if the content has another SHA-256.
    """
    make_folder(path.parent)
    content = bytearray()
    until = time.monotonic() + LONGEST_SECONDS
    try:
        response = _open(url)
        with response:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdecimal() else None
            while block := response.read1(1 << 16):  # read would wait for all of the bytes
                content += block
                on_progress(len(content), total)
                if time.monotonic() > until:
                    raise TimeoutError(f"only {len(content):,} bytes came in {LONGEST_SECONDS:.0f} seconds")
                if len(content) > LARGEST:
                    raise UserError(f"{url} sends more than the text that is expected; nothing was kept")
    except (OSError, http.client.HTTPException) as error:
        raise NoConnectionError(f"cannot download {url}: {error}") from error
    if total is not None and len(content) < total:
        raise NoConnectionError(f"cannot download {url}: it broke off after {len(content):,} of {total:,} bytes")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{url} has another SHA-256 than expected; nothing was kept. Pass a file as `data` instead")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


class _SameHost(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirects only within a host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        host = urlsplit(newurl)
        if (host.scheme, host.netloc) != (req.type, req.host):
            raise OSError(f"it redirects to another host, {host.scheme}://{host.netloc}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str) -> http.client.HTTPResponse:
    """Open ``url`` in a thread, because name look-up and a second address have no time limit of their own."""
    answer: list[http.client.HTTPResponse | BaseException] = []

    def ask() -> None:
        try:
            answer.append(urllib.request.build_opener(_SameHost).open(url, timeout=STALL_SECONDS))
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answer:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} seconds")
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]
