"""Downloads from a small hub on loopback, which speaks as much of the protocol as `snapshot_download` asks for."""

import configparser
import http.server
import json
import pathlib
import shutil
import threading

import numpy as np
import pytest
from huggingface_hub import constants

from keras_bert_lib import checkpoints
from keras_bert_lib.checkpoints import hub

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bert_classifier"
HUB_ID = "someone/tiny-bert"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        parts = path.strip("/").split("/")
        if self.server.broken:
            return self.send(b"", status=503)
        if "/".join(parts[2:4] if parts[0] == "api" else parts[:2]) != HUB_ID:
            return self.send(b"{}", status=404, error="RepoNotFound")
        commit = parts[5] if parts[0] == "api" and len(parts) > 5 else parts[3] if parts[0] != "api" else "main"
        commit = COMMITS.get(commit, commit)
        if commit not in self.server.commits:
            return self.send(b"{}", status=404, error="RevisionNotFound")
        files = self.server.commits[commit]
        if parts[0] != "api":
            name = "/".join(parts[4:])
            if name not in files:
                return self.send(b"", status=404, error="EntryNotFound")
            return self.send(files[name], commit=commit, etag=f"{commit}-{name}")
        if len(parts) > 4 and parts[4] == "tree":
            rows = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files.items()]
            return self.send(json.dumps(rows).encode())
        info = {"id": HUB_ID, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        return self.send(json.dumps(info).encode())

    def send(self, body, status=200, commit=None, etag=None, error=None):
        headers = {"Content-Length": len(body), "X-Repo-Commit": commit, "X-Error-Code": error}
        headers["ETag"] = f'"{etag}"' if etag else None
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with one model of two commits, which `HF_ENDPOINT` points at; the cache is empty."""
    files = {path.name: path.read_bytes() for path in GOLDEN.iterdir()}
    files |= {"pytorch_model.bin": b"a pickle", "onnx/model.onnx": b"a graph", "model.fp16.safetensors": b"a variant"}
    old = {**files, "config.json": files["config.json"].replace(b"neutral", b"undecided")}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.commits = {COMMITS["main"]: files, COMMITS["v1"]: old}
        server.requests = []
        server.broken = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        # After huggingface_hub was imported, as in a notebook.
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()


def test_a_hub_id_loads_what_the_directory_holds(server):
    encoder = checkpoints.load_encoder(HUB_ID)
    for ours, expected in zip(encoder.weights, checkpoints.load_encoder(GOLDEN).weights, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_only_files_that_are_read_are_downloaded(server):
    directory = checkpoints.fetch(HUB_ID)
    names = {path.name for path in directory.iterdir()}
    assert names == {path.name for path in GOLDEN.iterdir()} - {"tokens.json", "expected.safetensors"}


def test_without_weights_no_weights_are_downloaded(server):
    directory = checkpoints.fetch(HUB_ID, weights=False)
    assert {path.name for path in directory.iterdir()} == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not any("safetensors" in path for path in server.requests)


@pytest.mark.parametrize("revision", ["v1", COMMITS["v1"]])
def test_revision_chooses_the_commit(server, revision):
    assert checkpoints.load_config(HUB_ID, revision=revision).labels == ("negative", "undecided", "positive")
    assert checkpoints.load_config(HUB_ID).labels == ("negative", "neutral", "positive")


def test_the_cache_answers_when_the_hub_does_not(server, monkeypatch):
    directory = checkpoints.fetch(HUB_ID)
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert checkpoints.fetch(HUB_ID) == directory
    assert server.requests == []


def test_offline_without_a_cache_says_so(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="not complete in the local cache while HF_HUB_OFFLINE is set"):
        checkpoints.fetch(HUB_ID)
    assert server.requests == []


def test_an_endpoint_without_a_server_is_named(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"http://127\.0\.0\.1:9 cannot be reached.*pass a directory"):
        checkpoints.fetch(HUB_ID)


def test_unknown_model_names_the_directory_too(server):
    with pytest.raises(FileNotFoundError, match=r"no directory 'someone/other' here, and http.* has no model"):
        checkpoints.load_encoder("someone/other")


def test_unknown_revision_is_named(server):
    with pytest.raises(FileNotFoundError, match="has no revision 'v9'"):
        checkpoints.fetch(HUB_ID, revision="v9")


def test_a_hub_that_fails_is_named(server):
    server.broken = True
    with pytest.raises(FileNotFoundError, match=f"{HUB_ID}"):
        checkpoints.fetch(HUB_ID)


def test_a_repository_with_pickles_alone_says_what_is_read(server):
    files = server.commits[COMMITS["main"]]
    for name in [name for name in files if name.endswith((".safetensors", ".index.json"))]:
        del files[name]
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor .*pickles such as pytorch_model\.bin"):
        checkpoints.load_encoder(HUB_ID)


def test_revision_of_a_directory_is_refused():
    with pytest.raises(ValueError, match=r"`revision` chooses a version of a hub repository.*'v1'"):
        hub.fetch(GOLDEN, revision="v1")


@pytest.mark.parametrize("path", ["./nowhere", "/no/where/at/all", "a/b/c", "with space", pathlib.Path("bert-base")])
def test_a_path_that_is_no_hub_id_is_not_asked_for(server, path):
    with pytest.raises(FileNotFoundError, match=r"no directory .* not a hub id"):
        checkpoints.fetch(path)
    assert server.requests == []


def test_a_file_is_refused():
    with pytest.raises(NotADirectoryError, match=r"is a file\. Pass the directory"):
        checkpoints.fetch(GOLDEN / "config.json")


@pytest.mark.parametrize("nothing", ["", None, 3])
def test_neither_path_nor_name_is_refused(nothing):
    with pytest.raises(ValueError, match=f"directory of a checkpoint or a hub id. Received: {nothing!r}"):
        checkpoints.fetch(nothing)


@pytest.fixture
def built_in(server, tmp_path, monkeypatch):
    """A package with one checkpoint in it, beside a file, and an empty working directory."""
    root = tmp_path / "built_in"
    shutil.copytree(GOLDEN, root / "kbl-test")
    (root / "README.md").write_text("no checkpoint")
    monkeypatch.setattr(hub, "_BUILT_IN", root)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root / "kbl-test"


def test_a_built_in_checkpoint_is_found_without_the_network(server, built_in):
    assert checkpoints.fetch("kbl-test") == built_in
    assert checkpoints.load_config("kbl-test").labels == ("negative", "neutral", "positive")
    assert server.requests == []


def test_a_directory_wins_over_a_built_in_checkpoint(built_in):
    pathlib.Path("kbl-test").mkdir()
    assert checkpoints.fetch("kbl-test") == pathlib.Path("kbl-test")


def test_a_path_is_no_built_in_name(built_in):
    with pytest.raises(FileNotFoundError, match=r"no directory 'kbl-test', and that is not a hub id"):
        checkpoints.fetch(pathlib.Path("kbl-test"))


@pytest.mark.parametrize("name", ["README.md", "someone/kbl-test"])
def test_other_names_are_asked_for_at_the_hub(server, built_in, name):
    with pytest.raises(FileNotFoundError, match=f"has no model of that name|did not deliver '{name}'"):
        checkpoints.fetch(name)
    assert server.requests


def test_revision_of_a_built_in_checkpoint_is_refused(built_in):
    with pytest.raises(
        ValueError, match=r"'kbl-test' comes with this package\. Received: revision='v1'\. Leave it out"
    ):
        checkpoints.fetch("kbl-test", revision="v1")


def test_built_in_checkpoints_lie_in_the_package_and_go_into_its_wheel():
    assert pathlib.Path(checkpoints.__file__).with_name("built_in") == hub._BUILT_IN
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[2] / "setup.cfg")
    assert "checkpoints/built_in/*/*" in setup["options.package_data"]["keras_bert_lib"].split()
