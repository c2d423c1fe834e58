"""Published weights: given, cached, or downloaded from a server on this machine that cuts, lies or is not there."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gentk.errors import MissingAsset, RunFailed
from gentk.recipe import download
from gentk.recipe import weights as published
from gentk.recipe.weights import Weights, find

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at any path. `cuts`: after how many bytes each next connection breaks; `asked`: ranges wanted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.resumes, self.status = CONTENT, True, 200
        self.cuts: list[int] = []
        self.asked: list[str | None] = []
        self.wait = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers["Range"])
        time.sleep(server.wait)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if self.headers["Range"] and server.resumes:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])  # type: ignore[index]
            if start >= len(server.content):
                self.send_error(416)
                return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GENTK_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def weights(url: str, sha256: str = SHA) -> Weights:
    return Weights("weights.pth", url, len(CONTENT), sha256, "Apache-2.0", "for a test")


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


@pytest.mark.parametrize("sha256", [SHA, SHA[:8], ""])
def test_a_download_into_the_cache(
    sha256: str, server: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = find(weights(server.url, sha256))
    assert path == cache / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert left(cache) == ["weights.pth"]
    assert find(weights(server.url, sha256)) == path
    assert len(server.asked) == 1, "what is in the cache is not fetched again"
    said = capsys.readouterr()
    assert said.out == ""
    assert f"fetching weights.pth (1,048,576 bytes, {'sha256' if sha256 else 'no'}" in said.err


def test_progress_counts_what_is_here(server: Server) -> None:
    server.cuts = [1000]
    told: list[tuple[int, int | None]] = []
    find(weights(server.url), progress=lambda here, total: told.append((here, total)))
    assert told[0] == (1000, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [here for here, _ in told] == sorted(here for here, _ in told)


def test_cuts_are_gone_on_with(server: Server) -> None:
    server.cuts = [1000, 500_000]
    assert find(weights(server.url)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=501000-"]


def test_the_next_call_goes_on_where_the_last_was_cut(server: Server, cache: Path) -> None:
    server.cuts = [1000, 0]
    with pytest.raises(MissingAsset, match="the connection was cut"):
        find(weights(server.url))
    assert left(cache) == [".weights.pth.part"]
    assert find(weights(server.url)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1000-"]
    assert left(cache) == ["weights.pth"]


def test_without_a_checksum_each_call_begins_anew(server: Server) -> None:
    server.cuts = [1000, 0]
    with pytest.raises(MissingAsset):
        find(weights(server.url, ""))
    assert find(weights(server.url, "")).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", None]


def test_a_server_that_cannot_resume_begins_again(server: Server) -> None:
    server.cuts, server.resumes = [1000], False
    assert find(weights(server.url)).read_bytes() == CONTENT


def test_all_bytes_were_there_before_the_process_died(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".weights.pth.part").write_bytes(CONTENT)
    assert find(weights(server.url)).read_bytes() == CONTENT


@pytest.mark.parametrize("sha256", [SHA, SHA[:8]])
def test_a_wrong_checksum_is_refused_and_removed(sha256: str, server: Server, cache: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(RunFailed, match=f"sha256 [0-9a-f]{{64}}, expected {sha256}.*removed") as failure:
        find(weights(server.url, sha256))
    assert server.url in str(failure.value)
    assert left(cache) == []


@pytest.mark.parametrize(("status", "text"), [(404, "answers 404 Not Found"), (503, "answers 503 Service Unavailable")])
def test_the_address_gives_no_file(status: int, text: str, server: Server, cache: Path) -> None:
    server.status = status
    with pytest.raises(MissingAsset, match=text):
        find(weights(server.url))
    assert not (cache / "weights.pth").exists()


def says_all(failure: pytest.ExceptionInfo[MissingAsset], wanted: Weights, place: Path) -> None:
    """File, size, hash, address, place and the option."""
    text = f"{failure.value} {failure.value.hint}"
    for part in (wanted.name, "1,048,576 bytes", wanted.sha256, wanted.url, str(place), "--weights PATH"):
        assert part in text


@pytest.mark.parametrize("way", ["argument", "GENTK_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_no_socket_is_opened(way: str, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way != "argument":
        monkeypatch.setenv(way, "1")
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket"))
    wanted = weights(server.url)
    start = time.perf_counter()
    with pytest.raises(MissingAsset, match="offline") as failure:
        find(wanted, offline=way == "argument")
    assert time.perf_counter() - start < 2
    says_all(failure, wanted, cache / "weights.pth")
    assert server.asked == []


def test_offline_what_is_in_the_cache_is_used(server: Server) -> None:
    path = find(weights(server.url))
    assert find(weights("http://nowhere.invalid/weights.pth"), offline=True) == path


def test_offline_is_off_for_zero(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert find(weights(server.url)).is_file()


def closed_port() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}/weights.pth"


def test_no_network_is_told_in_two_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is closed, and a look-up of a name that hangs, which no time limit of sockets ends."""
    release = threading.Event()
    for url, text in ((closed_port(), "refused"), ("http://slow.invalid/weights.pth", "no answer within 1.5 s")):
        if "slow" in url:
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])
        wanted = weights(url)
        start = time.perf_counter()
        with pytest.raises(MissingAsset, match=text) as failure:
            find(wanted)
        assert time.perf_counter() - start < 2
        says_all(failure, wanted, cache / "weights.pth")
    release.set()


def test_behind_a_proxy_it_is_the_proxy_that_must_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/weights.pth"))
    assert find(weights("http://inside.invalid/weights.pth")).read_bytes() == CONTENT


def fetch_in_child(url: str, path: Path) -> None:
    download.fetch(url, path, SHA)


def test_processes_share_one_download(server: Server, cache: Path) -> None:
    server.wait = 0.3
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=fetch_in_child, args=(server.url, cache / "weights.pth")) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(server.asked) == 1
    assert left(cache) == ["weights.pth"]
    assert (cache / "weights.pth").read_bytes() == CONTENT


def test_a_file_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(CONTENT)
    nowhere = "http://nowhere.invalid/weights.pth"
    for known in (SHA, SHA[:8], ""):
        assert find(weights(nowhere, known), path, offline=True) == path
    with pytest.raises(RunFailed, match=f"{path}: sha256 {SHA}, but .* sha256 begins with 00000000") as failure:
        find(weights(nowhere, "00000000"), path)
    assert nowhere in failure.value.hint
    assert path.is_file(), "a user's file is not ours to remove"
    with pytest.raises(MissingAsset, match=r"no file .*absent"):
        find(weights(nowhere), tmp_path / "absent")


def test_a_damaged_file_in_the_cache(server: Server) -> None:
    path = find(weights(server.url))
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(RunFailed, match=r"sha256 .*, but weights\.pth") as failure:
        find(weights(server.url))
    assert "remove it" in failure.value.hint


def test_a_disk_that_refuses(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunFailed, match="cannot be written") as failure:
        find(weights(server.url))
    assert "GENTK_CACHE" in failure.value.hint


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert published.cache() == tmp_path / "cache" / "weights"
    monkeypatch.delenv("GENTK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert published.cache() == tmp_path / "gentk" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert published.cache() == Path.home() / ".cache" / "gentk" / "weights"


def test_digest_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert published.digest(path) == published.digest(path) == SHA
    path.write_bytes(b"other")
    assert published.digest(path) == hashlib.sha256(b"other").hexdigest()
