"""Download from a real HTTPS server on this machine."""

import hashlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from charformer.data import corpus, download
from charformer.errors import UserError

TEXT = b"To be, or not to be, that is the question.\n" * 100
SHA256 = hashlib.sha256(TEXT).hexdigest()

REDIRECTS = {
    "/within": "/text",
    "/elsewhere": "https://127.0.0.1:{port}/text",
    "/plain": "http://localhost:{port}/text",
    "/file": "file:///etc/passwd",
    "/round": "/round",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            self.server.release.wait(20)  # type: ignore[attr-defined]
            return
        if self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path].format(port=self.server.server_address[1]))
            self.end_headers()
            return
        if self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.release.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT[:1000] if self.path == "/cut" else TEXT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("no_proxy", "localhost")
    server = ThreadingHTTPServer(("localhost", 0), Handler)
    server.release = threading.Event()  # type: ignore[attr-defined]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.release.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str = SHA256) -> None:
    entry = corpus.Download(url, sha256, stand_in="python-docs")
    monkeypatch.setitem(corpus.DOWNLOADS, "tiny-shakespeare", entry)


def test_a_download_is_checked_and_kept(server: str, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    point_at(monkeypatch, f"{server}/text")
    seen: list[tuple[str, int, int | None]] = []
    loaded = corpus.load("tiny-shakespeare", lambda *progress: seen.append(progress))
    assert loaded.sha256 == SHA256
    assert loaded.summary()["source"] == f"{server}/text"
    assert ("downloading tiny-shakespeare", len(TEXT), len(TEXT)) in seen
    point_at(monkeypatch, "https://localhost:1/gone")
    assert len(corpus.load("tiny-shakespeare").ids) == len(TEXT)  # no network needed any more


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("cut", "broke off"),
        ("missing", "404"),
        ("elsewhere", "redirects to another host, https://127.0.0.1"),
        ("plain", "redirects to another host, http://localhost"),
        ("file", "."),
        ("round", "."),
        ("drip", "only .* bytes came"),
    ],
)
def test_no_text_from_a_server_that_fails(
    path: str, why: str, server: str, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    monkeypatch.setattr(download, "LONGEST_SECONDS", 1.0)
    point_at(monkeypatch, f"{server}/{path}")
    with pytest.raises(download.NoConnectionError, match=f"cannot download .*{why}"):
        corpus.load("tiny-shakespeare")
    assert list(cache_folder.glob("*")) == []


def test_a_redirect_within_the_host_is_followed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, f"{server}/within")
    assert len(corpus.load("tiny-shakespeare").ids) == len(TEXT)


def test_a_text_with_another_hash_is_not_kept(server: str, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    point_at(monkeypatch, f"{server}/text", sha256="0" * 64)
    with pytest.raises(UserError, match="another SHA-256") as caught:
        corpus.load_or_stand_in("tiny-shakespeare")
    assert not isinstance(caught.value, download.NoConnectionError)
    assert list(cache_folder.glob("*")) == []


def test_a_silent_server_is_given_up_and_the_stand_in_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.5)
    point_at(monkeypatch, f"{server}/slow")
    notices: list[str] = []
    loaded = corpus.load_or_stand_in("tiny-shakespeare", notice=notices.append)
    assert loaded.name == "python-docs"
    assert "no answer within" in notices[0]
    assert "python-docs" in notices[0]


def test_a_name_that_was_asked_for_has_no_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "https://localhost:1/text")
    with pytest.raises(download.NoConnectionError):
        corpus.load("tiny-shakespeare")


def test_a_damaged_cached_download_is_refused(server: str, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    point_at(monkeypatch, f"{server}/text")
    corpus.load("tiny-shakespeare")
    (cache_folder / f"{SHA256}.txt").write_bytes(b"poison")
    with pytest.raises(UserError, match="damaged; delete"):
        corpus.load("tiny-shakespeare")
