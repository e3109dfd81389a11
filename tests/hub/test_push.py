"""Pushing, over real HTTP, to a small Hub on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import TINY, run

TOKEN = "hf_loopbacksecret"


class Hub(BaseHTTPRequestHandler):
    """The few endpoints that a push calls."""

    def log_message(self, *args):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path.startswith("/api/whoami-v2"):
            return self.answer({"type": "user", "name": "ada", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        return self.answer({"id": "ada/digits", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self.read_chunks()
        state = self.server.state
        if self.path == "/api/repos/create":
            state["created"] = json.loads(body)
            return self.answer({"url": f"http://{self.headers['Host']}/ada/digits"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        if "/commit/" in self.path:
            if state.get("broken"):
                return self.answer({"error": "no"}, 500)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    state["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/ada/digits/commit/{'1' * 40}"
            return self.answer({"commitUrl": url, "commitOid": "1" * 40})
        return self.answer({})

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.state = {"files": {}}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def environment(hub):
    return {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def test_only_the_pipeline_goes_up_and_the_token_nowhere(hub, tmp_path):
    folder = tmp_path / "digits"
    options = [*TINY, "--output_dir", folder, "--push_to_hub", "--hub_private_repo", "--hub_token", TOKEN]
    result = run("train_ddpm", *options, env=environment(hub), launcher=False)
    assert result.returncode == 0, result.stderr
    assert f"Pushed:   http://127.0.0.1:{hub.server_port}/ada/digits" in result.stdout
    created = hub.state["created"]
    assert created["name"] == "digits"
    assert created.get("private") is True or created.get("visibility") == "private"
    assert sorted(hub.state["files"]) == [
        "README.md",
        "model_index.json",
        "samples.png",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    weights = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert hub.state["files"]["unet/diffusion_pytorch_model.safetensors"] == weights
    assert b'from_pretrained("ada/digits")' in hub.state["files"]["README.md"]
    assert TOKEN not in result.stdout + result.stderr
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        assert TOKEN.encode() not in path.read_bytes(), path
    assert "'***'" in json.loads((folder / "run.json").read_text())["command"]


def test_a_token_that_is_not_accepted_is_found_before_training(hub, tmp_path):
    options = [*TINY, "--output_dir", tmp_path / "digits", "--push_to_hub", "--hub_token", "hf_wrong"]
    result = run("train_ddpm", *options, env=environment(hub), launcher=False)
    assert result.returncode == 2
    assert "the Hub does not accept the token" in result.stderr
    assert "hf_wrong" not in result.stderr
    assert not (tmp_path / "digits").exists()


def test_a_failed_push_loses_nothing(hub, tmp_path):
    hub.state["broken"] = True
    folder = tmp_path / "digits"
    options = [*TINY, "--output_dir", folder, "--push_to_hub", "--hub_token", TOKEN]
    result = run("train_ddpm", *options, env=environment(hub), launcher=False)
    assert result.returncode == 2
    message = result.stderr.strip().splitlines()[-1]
    assert f"the pipeline in {folder} is complete, but could not be pushed" in message
    assert f"hf upload ada/digits {folder} . --include 'model_index.json'" in message
    assert (folder / "model_index.json").exists()
