"""Downloads of official weights from a server on this machine: interrupted, resumed, verified, refused."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

import ttf.measure
from ttf.config_store import model, models
from ttf.data.transforms import preprocessing
from ttf.models.checkpoint_files import NESTS
from ttf.models.download import TABLE, Published, fetch, published

ROOT = Path(__file__).parents[3]
DOWNLOADED = [name for name, entry in models().items() if entry["weights"] in ("hub", "official")]
CONTENT = bytes(range(1, 251)) * 20_000  # 5 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """One file, at any address. ``stop_after``: bytes after which the connection ends, once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.type = CONTENT, "application/octet-stream"
        self.status, self.ranges, self.stop_after = 200, True, 0
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if start >= len(server.content):
            return self.send_error(416)
        if server.status != 200:
            return self.send_error(server.status)
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.type)
        self.send_header("Content-Length", str(len(server.content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        end, server.stop_after = start + server.stop_after if server.stop_after else None, 0
        self.wfile.write(server.content[start:end])
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def entry(server: Server) -> Published:
    known = replace(published("lv_vit_s"), url=server.url, file="weights.pth", page="https://example.org/weights")
    return replace(known, sha256=SHA256)


def _left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


def test_a_file_comes_once_and_whole(entry, server, tmp_path):
    path = fetch(entry, tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert _left(path.parent) == {"weights.pth", "weights.pth.sha256"}
    assert fetch(entry, path.parent) == path
    assert server.asked == [None]


def test_a_broken_download_goes_on_where_it_ended(entry, server, tmp_path):
    server.stop_after = 3_000_000
    with pytest.raises(ValueError, match=r"download of weights.pth broke off .*same command again"):
        fetch(entry, tmp_path)
    assert _left(tmp_path) == {"weights.pth.part"}
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000000-"]


@pytest.mark.parametrize(("ranges", "length"), [(False, 1000), (True, len(CONTENT) + 7), (False, len(CONTENT) + 7)])
def test_a_part_that_cannot_go_on_starts_again(entry, server, tmp_path, ranges, length):
    server.ranges = ranges
    (tmp_path / "weights.pth.part").write_bytes(b"x" * length)
    assert fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={length}-", None]


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"sha256": "0" * 64}, "sha256 is not"),
        ({"sha256": None, "sha384": "0" * 96}, "sha384 is not 0000"),
        ({"sha256": None, "md5_prefix": "zz"}, "md5 does not start with zz"),
        ({"sha256": None, "bytes": 7}, "5000000 bytes, not 7"),
    ],
)
def test_another_file_than_the_published_one_is_removed(entry, tmp_path, known, said):
    with pytest.raises(ValueError, match=f"{said}.*removed.*by hand from https://example.org/weights"):
        fetch(replace(entry, **known), tmp_path)
    assert not _left(tmp_path)


def test_published_hashes_accept_the_file(entry, tmp_path):
    sha384, md5 = hashlib.sha384(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
    known = replace(entry, sha256=None, sha384=sha384, md5_prefix=md5[:6], bytes=len(CONTENT))
    path = fetch(known, tmp_path)
    assert path.with_name("weights.pth.sha256").read_text() == f"{SHA256}  weights.pth\n"


def test_a_file_that_changes_later_is_noticed(entry, tmp_path):
    unknown = replace(entry, sha256=None)
    path = fetch(unknown, tmp_path)
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(ValueError, match=r"tampered or damaged.*remove it and weights.pth.sha256"):
        fetch(unknown, tmp_path)
    assert path.exists()


@pytest.mark.parametrize("declared", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_checkpoint(entry, server, tmp_path, declared):
    server.content, server.type = b"<!DOCTYPE html><p>Quota exceeded</p>" * 100, declared
    with pytest.raises(ValueError, match="a web page, not a checkpoint.*fetch it by hand from https://example.org"):
        fetch(replace(entry, sha256=None), tmp_path)
    assert not _left(tmp_path)


@pytest.mark.parametrize("status", [404, 503])
def test_what_the_server_refuses(entry, server, tmp_path, status):
    server.status = status
    with pytest.raises(ValueError, match=rf"answered {status} .*{tmp_path}/weights.pth, or give checkpoint=FILE"):
        fetch(entry, tmp_path)


def test_no_connection(entry, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.pth"  # nobody listens
        with pytest.raises(ValueError, match=r"cannot be reached \(.*refused\): fetch it by hand.*checkpoint=FILE"):
            fetch(replace(entry, url=url), tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(entry, tmp_path):
    (tmp_path / "weights.pth.part").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"no space left for .*weights.pth.part: free some, or set paths.downloads"):
        fetch(entry, tmp_path)


def test_a_folder_that_cannot_be_made(entry, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write in .*set paths.downloads=FOLDER"):
        fetch(entry, tmp_path / "file" / "folder")


def test_two_at_a_time_download_once(entry, server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(entry, tmp_path), range(2)))
    assert [path.read_bytes() == CONTENT for path in paths] == [True, True]
    assert server.asked == [None]


def test_models_without_published_weights():
    with pytest.raises(ValueError, match="no published weights of 'vit_mini'.*checkpoint=FILE"):
        published("vit_mini")


@pytest.mark.parametrize("name", DOWNLOADED)
def test_configs_agree_with_what_is_published(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model(name)
    entry = published(name)
    score, decimals = {"cls": ("top1", 1), "seg": ("miou", 1), "det": ("ap", 1), "depth": ("abs_rel", 3)}[
        config.tasks[0]
    ]
    assert config.get(f"published_{score}") == round(getattr(entry, score), decimals)
    assert (entry.hub, entry.url is None) == (config.network.get("model_name"), config.weights == "hub")
    assert {*entry.keys} <= {*NESTS, "bare"}
    if config.network["_target_"].startswith("ttf.models.dino"):
        pytest.skip("built by mmdet, see test_dino.py")
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)  # most of the time
    with torch.device("meta" if entry.params_m > 50 else "cpu"):
        try:
            network = instantiate(config.network)
        except InstantiationException as error:
            if "meta tensor" not in str(error):
                raise
            pytest.skip("this timm does not build large models on the meta device")
    assert entry.preprocessing is None or preprocessing(network) == entry.preprocessing
    assert ttf.measure.params_m(network) == pytest.approx(entry.params_m, abs=5e-4)
    if entry.hub:
        assert timm.get_pretrained_cfg(entry.hub).license in (entry.licence.lower(), None)  # None: of an older timm


def test_the_documentation_lists_every_file() -> None:
    rows = (ROOT / "docs" / "weights.md").read_text().splitlines()
    for name in OmegaConf.load(TABLE):
        entry = published(str(name))
        scores = {"mIoU": entry.miou, "AP": entry.ap, "AbsRel": entry.abs_rel}
        score = entry.top1 or next(f"{value} {name}" for name, value in scores.items() if value)
        file = entry.file or f"{entry.hub}.safetensors"
        row = f"| {name} | {score} | {entry.licence} | `{file}` | ["
        assert [line for line in rows if line.startswith(row) and f"({entry.page})" in line], name
