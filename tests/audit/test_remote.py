"""Graphs and checkpoints behind URLs: the same reports as of files, and only what is needed is fetched."""

import functools
import http.server
import os
import re
import threading
from pathlib import Path

import pytest

from bn_graph.__main__ import main
from bn_graph.audit import audit, audit_all
from bn_graph.audit.many import audit_tasks, find_tasks
from bn_graph.audit.report import Report
from bn_graph.checkpoints import storage
from bn_graph.checkpoints.files import latest_checkpoint
from tests.audit.frozen import frozen

MODELS = Path(__file__).parents[1] / "models"
fsspec = pytest.importorskip("fsspec", reason="the extra `remote` is not installed")


def find_checkpoint():
    """The files of a small checkpoint with its graph, that TensorFlow 1 wrote."""
    meta = min(MODELS.rglob("*.meta"), key=lambda path: (not path.with_suffix(".index").exists(), path.stat().st_size))
    return [path for path in meta.parent.iterdir() if path.is_file() and path.name.startswith(meta.stem)]


@pytest.fixture
def folder(tmp_path):
    """A directory with a checkpoint, a frozen graph below it, and things that are none."""
    (tmp_path / "run").mkdir()
    for path in find_checkpoint():
        (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    if not list(tmp_path.glob("run/*.data-*")):
        (tmp_path / "run" / "model.data-00000-of-00001").write_bytes(bytes(1 << 20))
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen" / "graph.pb").write_bytes(frozen((0.0, 0.0)))
    (tmp_path / "frozen" / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "frozen" / "batches.meta").write_bytes(b"")
    return tmp_path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, with byte ranges if the server has them; notes what is asked for."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.translate_path(self.path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not self.server.ranges or not wanted or not os.path.isfile(path):
            return super().do_GET()
        data = Path(path).read_bytes()
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        self.wfile.write(data[start : end + 1])

    def end_headers(self):
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()


@pytest.fixture(params=["memory", "http", "http without ranges"])
def url(request, folder):
    """The URL of the directory."""
    if request.param == "memory":
        files = fsspec.filesystem("memory")
        files.put(str(folder), "/models", recursive=True)
        yield "memory://models"
        files.rm("/models", recursive=True)
        return
    pytest.importorskip("aiohttp")
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked, server.ranges = [], request.param == "http"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        assert not any(".data-" in path for path in server.asked), "the .data file is not needed"


def results(path):
    return [result for _, found in audit_tasks(find_tasks([str(path)]), {}) for result in found]


def elsewhere(result, old, new):
    """The same, of another place."""
    if not isinstance(result, Report):
        return result._replace(path=result.path.replace(old, new))
    prefix = result.checkpoint and result.checkpoint.replace(old, new)
    findings = [
        finding._replace(evidence=tuple(line.replace(old, new) for line in finding.evidence))
        for finding in result.findings
    ]
    return result._replace(path=result.path.replace(old, new), checkpoint=prefix, findings=tuple(findings))


def test_a_directory_behind_a_url_has_the_reports_of_the_directory(url, folder):
    found = results(url)
    assert found == [elsewhere(result, str(folder), url.rstrip("/")) for result in results(folder)]
    assert sum(isinstance(result, Report) for result in found) == 2 and len(found) == 3


def test_a_file_behind_a_url_has_the_checkpoint_beside_it(url, folder):
    (meta,) = (folder / "run").glob("*.meta")
    for name in (meta.name, meta.stem):
        report = audit(f"{url.rstrip('/')}/run/{name}")
        assert report.checkpoint == f"{url.rstrip('/')}/run/{meta.stem}"
        assert report.layers == audit(meta).layers


def test_what_is_not_there_is_one_line(url, capsys):
    assert main(["audit", f"{url.rstrip('/')}/run/gone.meta"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bn_graph audit: {url.rstrip('/')}/run/gone.meta: ")


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "sarif", "junit", "github", "html"])
def test_every_format_names_the_url(form, url, capsys):
    assert main(["audit", f"{url.rstrip('/')}/frozen/graph.pb", "--format", form]) == 1
    assert url in capsys.readouterr().out


def test_a_server_that_cannot_be_reached_is_one_line(capsys):
    pytest.importorskip("aiohttp")
    assert main(["audit", "http://127.0.0.1:9/model.meta"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_kind_of_url_that_nothing_reads_is_one_line(capsys):
    assert main(["audit", "nosuch://bucket/model.meta"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nosuch" in line


def test_the_latest_checkpoint_of_a_directory_behind_a_url():
    files = fsspec.filesystem("memory")
    for name in ("model.ckpt-9.index", "model.ckpt-10.index"):
        files.pipe(f"/steps/{name}", b"")
    assert latest_checkpoint("memory://steps") == "memory://steps/model.ckpt-10"
    files.pipe("/steps/checkpoint", b'model_checkpoint_path: "model.ckpt-9"\n')
    assert latest_checkpoint("memory://steps") == "memory://steps/model.ckpt-9"
    files.rm("/steps", recursive=True)


def test_without_fsspec_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ValueError, match=r"bn_graph\[remote\]"):
        audit_all("gs://bucket/model.meta")
    assert not storage.is_url("gs/bucket")


def test_a_file_of_keras_behind_a_url(tmp_path):
    pytest.importorskip("h5py")
    from tests.audit.test_keras_files import write_keras3

    arrays = [[1.5], [0.5], [0.0], [1.0]]
    local = {name: write_keras3(tmp_path / name, {"bn": arrays}, archive=name.endswith(".keras"))
             for name in ("model.keras", "model.weights.h5")}  # fmt: skip
    files = fsspec.filesystem("memory")
    for name, path in local.items():
        files.put(str(path), f"/keras/{name}")
        report = audit(f"memory://keras/{name}")
        assert report.layers == audit(path).layers and report.layers
    files.rm("/keras", recursive=True)
