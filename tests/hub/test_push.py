"""Pushing, over real HTTP and through the real client, to a Hub on this machine that can fail."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import ROOT, TINY, Command, run
from hub.server import ADA, BOB, READER
from huggingface_hub import errors
from huggingface_hub.utils import hf_raise_for_status

from hfgen.hub.background import BackgroundPush
from hfgen.hub.push import _asked_to_wait, _may_pass, _reason
from hfgen.hub.space import write_space
from hfgen.models.mlp_gan import MLPGenerator
from hfgen.pipelines.gan import GANPipeline
from hfgen.runtime.errors import UserError
from hfgen.training.config import TrainingConfig

DDPM_FILES = {
    "README.md",
    "model_index.json",
    "run.json",
    "samples.png",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}


RIGHTS = 'You don\'t have the rights to create a model under the namespace "bob".'
FULL = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."
GATED = (
    "Access to model a/b is restricted and you are not in the authorized list. Visit https://huggingface.co/a/b to ask"
)
LIMIT = "We had to rate limit you, you can retry this action in about 1 hour."


def ddpm():
    torch.manual_seed(0)
    network = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "norm_num_groups": 4}
    unet = UNet2DModel(8, 1, 1, block_out_channels=[8], layers_per_block=1, attention_head_dim=8, **network)
    return DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=10))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, with all that must not go up."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    for place in (folder, folder / "best"):
        ddpm().save_pretrained(place)
        (place / "README.md").write_text(f"---\ntags: [hfgen]\n---\n# {place.name}\n")
        (place / "samples.png").write_bytes(b"\x89PNG" + bytes(100))
        (place / "run.json").write_text("{}\n")
    for name in (
        "checkpoint-000000000064/unet.safetensors",
        "logs/metrics.jsonl",
        "images/000000.png",
        ".cache/a.bin",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not for others")
    for name in ("unet/.cache", "unet/__pycache__"):
        (folder / name).mkdir()
        (folder / name / "a.pyc").write_bytes(b"not for others")
    for name in ("optimizer.pt", "diffusion_pytorch_model.bin"):
        (folder / "unet" / name).write_bytes(b"not for others")
    return folder


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def push(hub, folder, *options, token=ADA, hurry=True, **more):
    options = ["--folder", folder, "--hub_model_id", "ada/digits", *options]
    return run("push_to_hub", *options, env=hub.environment(token, hurry, **more))


def test_only_the_pipeline_goes_up(hub, finished):
    result = push(hub, finished, "--private", "--commit_message", "First one")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"Pushed:   {hub.url}/ada/digits\n"
    repo = hub["ada/digits"]
    assert repo.private and repo.history() == ["First one", "initial commit"]
    files = repo.files()
    assert set(files) == DDPM_FILES | {".gitattributes"}
    assert all(files[name] == (finished / name).read_bytes() for name in DDPM_FILES)
    assert hub.count("PUT /lfs/") == 2  # weights and grid
    assert push(hub, finished / "best").returncode == 0  # one file differs
    assert set(repo.files()) == set(files) and b"# best" in repo.files()["README.md"]


def test_a_space_goes_up_without_its_caches(hub, finished, tmp_path):
    write_space(tmp_path / "it", str(finished))
    paths = [path for path in (tmp_path / "it").rglob("*") if path.is_file()]
    kept = {path.relative_to(tmp_path / "it").as_posix(): path.read_bytes() for path in paths}
    for name in ("__pycache__/app.pyc", "hfgen/__pycache__/errors.pyc", ".gradio/certificate.pem", "model/evil.py"):
        (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "it" / name).write_text(name)
    (tmp_path / "it" / "hfgen" / "registry.py").write_text("evil")  # the library that is installed goes up
    space = ["--repo_type", "space", "--private"]
    hub.fail("/commit/", status=500, times=99)
    result = push(hub, tmp_path / "it", *space)
    assert "the Space in" in result.stderr and "ada/digits --repo_type space --private" in result.stderr
    hub.failures.clear()
    result = push(hub, tmp_path / "it", *space)
    assert result.stdout == f"Pushed:   {hub.url}/spaces/ada/digits\n", result.stderr
    repo = hub.repos["spaces", "ada/digits"]
    files = repo.files()
    del files[".gitattributes"]
    assert repo.private and files == kept and not hub.count("/models/")
    result = push(hub, tmp_path / "it", *space, "--create_pr")
    assert result.stdout == f"Pushed:   {hub.url}/spaces/ada/digits/discussions/1\n", result.stderr
    result = push(hub, tmp_path / "it" / "model", *space)
    assert result.returncode == 2 and "holds no Space" in result.stderr
    with (tmp_path / "it" / "app.py").open("a") as file:
        file.write("evil()\n")
    result = push(hub, tmp_path / "it", *space)
    assert result.returncode == 2 and "app.py is not what this version of hfgen writes" in result.stderr
    result = push(hub, tmp_path / "it")
    assert result.returncode == 2 and "holds no pipeline" in result.stderr


def test_branches_and_pull_requests(hub, finished):
    result = push(hub, finished, "--revision", "try/1")
    assert result.stdout == f"Pushed:   {hub.url}/ada/digits/tree/try%2F1\n", result.stderr
    repo = hub["ada/digits"]
    assert repo.history() == ["initial commit"]
    assert repo.history("try/1") == ["Upload pipeline", "initial commit"]
    hub.fail("POST .*/commit/", drop="late")
    result = push(hub, finished, "--create_pr", token=BOB)
    assert result.stdout == f"Pushed:   {hub.url}/ada/digits/discussions/1\n", result.stderr
    assert repo.history() == ["initial commit"] and len(repo.pulls) == 1
    assert repo.history("refs/pr/1") == ["Upload pipeline", "initial commit"]
    assert set(repo.files("refs/pr/1")) == DDPM_FILES | {".gitattributes"}
    result = push(hub, finished, "--create_pr", "--revision", "try/1")
    assert result.returncode == 2 and "exclude each other" in result.stderr


def test_xet_clients_push_too(hub, finished):
    """With hf_xet another part of huggingface_hub uploads; files that are not large need no Xet server."""
    hub.lfs = False
    hub.fail("POST .*/commit/", status=503)
    result = push(hub, finished, "--private", HF_HUB_DISABLE_XET="0")
    assert result.returncode == 0, result.stderr
    assert set(hub["ada/digits"].files()) == DDPM_FILES | {".gitattributes"}


@pytest.mark.parametrize(
    "failures",
    [
        [("/repos/create", {"status": 500}), ("/validate-yaml", {"status": 502}), ("/preupload/", {"status": 500})],
        [("/info/lfs", {"status": 503}), ("PUT /lfs/", {"status": 500}), ("/verify", {"status": 500})],
        [("/commit/", {"status": 500, "times": 3})],
        [("PUT /lfs/", {"drop": "early", "times": 11}), ("/commit/", {"drop": "early"})],  # more than the client bears
        [("/repos/create", {"drop": "late"}), ("/commit/", {"drop": "late"})],  # done, though the client cannot know
        [("", {"delay": 0.2, "times": 99})],
    ],
    ids=["5xx", "5xx-lfs", "5xx-thrice", "dropped", "dropped-after", "slow"],
)
def test_failures_that_pass(hub, finished, failures):
    for pattern, how in failures:
        hub.fail(pattern, **how)
    result = push(hub, finished)
    assert result.returncode == 0, result.stderr
    assert hub["ada/digits"].history() == ["Upload pipeline", "initial commit"]
    assert set(hub["ada/digits"].files()) == DDPM_FILES | {".gitattributes"}


def test_the_hub_is_given_the_time_that_it_asks_for(hub, finished):
    hub.fail("/commit/", status=429, headers={"Retry-After": "120"})
    assert push(hub, finished).returncode == 0
    first, second = (when for _, path, when in hub.requests if "/commit/" in path)
    assert second - first >= 1.2  # a hundredth of it
    hub.fail("/commit/", status=429, headers={"Retry-After": "4000"}, times=99)
    (finished / "README.md").write_text("---\ntags: [hfgen]\n---\n# Changed\n")
    result = push(hub, finished)
    assert result.returncode == 2 and hub.count("/commit/") == 3
    assert "429 Too Many Requests" in result.stderr


def test_what_cannot_be_pushed_now_can_be_pushed_later(hub, finished):
    before = content(finished)
    hub.fail("/commit/", status=500, times=99, message=f"cannot take it from {ADA}")
    options = ["--private", "--revision", "try/1", "--commit_message", 'it\'s the "first"']
    result = push(hub, finished, *options)
    assert result.returncode == 2
    assert f"the pipeline in {finished} is complete, but could not be pushed: Server error '500" in result.stderr
    assert "cannot take it from ***" in result.stderr and hub.count("/commit/") == 4
    assert content(finished) == before
    hub.failures.clear()
    command = shlex.split(result.stderr.partition("Push it later with: ")[2])
    assert command[:2] == ["hfgen", "push"]
    again = subprocess.run(
        [sys.executable, "scripts/push_to_hub.py", *command[2:]],
        cwd=ROOT,
        env=os.environ | hub.environment(ADA),
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert hub["ada/digits"].private and hub["ada/digits"].history("try/1")[0] == options[-1]


def test_a_pull_request_that_was_opened_is_gone_on_with(hub, finished):
    hub.create("ada/digits")
    hub.fail("PUT /lfs/", status=400, times=99)
    result = push(hub, finished, "--create_pr")
    assert "--hub_model_id ada/digits --revision refs/pr/1\n" in result.stderr
    hub.failures.clear()
    assert push(hub, finished, "--revision", "refs/pr/1").returncode == 0
    assert hub["ada/digits"].history("refs/pr/1")[0] == "Upload pipeline" and len(hub["ada/digits"].pulls) == 1


def test_what_will_not_pass_is_not_tried_again(hub, finished, tmp_path):
    def ends(text, *options, requests=1, **kwargs):
        hub.requests.clear()
        result = push(hub, finished, *options, **kwargs)
        assert result.returncode == 2 and text in result.stderr, result.stderr
        assert len(hub.requests) == requests and result.stderr.count("\n") == 1

    ends("there is no token of the Hub: set HF_TOKEN, or run `hf auth login`", token=None, requests=0)
    ends("Invalid credentials in Authorization header", token="hf_wrong", requests=2)
    ends("403 Forbidden: You don't have the rights to create a model", token=BOB, requests=2)
    ends("offline mode is enabled", HF_HUB_OFFLINE="1", requests=0)
    ends("--hub_model_id a//b is no name for a repository", "--hub_model_id", "a//b", requests=0)
    hub.create("ada/digits")
    ends("exists and is public, not private", "--private", requests=2)
    for status, message in ((403, FULL), (501, "Not here.")):
        hub.fail("/commit/", status=status, message=message, times=9)
        result = push(hub, finished)
        assert result.returncode == 2 and f" {message} " in result.stderr and hub.failures.pop().times == 8
    result = push(hub, tmp_path)
    assert result.returncode == 2 and f"{tmp_path} holds no pipeline" in result.stderr


@pytest.mark.parametrize(
    ("status", "message", "headers", "more", "again"),
    [
        (403, RIGHTS, {}, ["403 Forbidden", "Make sure your token has the correct permissions."], False),
        (403, FULL, {}, ["403 Forbidden"], False),
        (401, "Invalid credentials in Authorization header", {}, ["401 "], False),
        (404, "Repository not found", {"X-Error-Code": "RepoNotFound"}, ["make sure you are authenticated"], False),
        (404, "Invalid rev id: v2", {"X-Error-Code": "RevisionNotFound"}, ["Revision Not Found for url"], False),
        (403, GATED, {"X-Error-Code": "GatedRepo"}, ["Cannot access gated repo"], False),
        (429, LIMIT, {"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
         ["you have reached your 'api' rate limit.", "Retry after 55 seconds (0/500 requests remaining"], True),
        (429, LIMIT, {"Retry-After": "7"}, ["429 Too Many Requests"], True),
        (400, "Bad pattern\nin line 2", {}, ["Bad request:", "in line 2."], False),
        (501, "No such thing", {}, ["501 Not Implemented"], False),
        (507, "No room", {}, ["507 Insufficient Storage"], False),
        (503, "Back soon", {}, ["503 Service Unavailable"], True),
    ],
)  # fmt: skip
def test_the_reason_of_a_refusal_is_told_whole_and_once(status, message, headers, more, again):
    """Answers as the Hub gives them, through the client's own function that makes errors of them."""
    response_class = errors.Response
    request_class = sys.modules[response_class.__module__.partition(".")[0]].Request
    said = {"X-Error-Message": message.replace("\n", " "), "X-Request-Id": "Root=1-abc;def", **headers}
    for head, body in ((said, {"error": message}), ({**headers, "X-Amz-Cf-Id": "Root=1-abc;def"}, {"error": message})):
        request = request_class("POST", "https://huggingface.co/api/models/a/b/commit/main")
        response = response_class(status, headers=head, json=body, request=request)
        with pytest.raises(errors.HfHubHTTPError) as error:
            hf_raise_for_status(response)
        reason = _reason(error.value)
        assert reason.lower().count(message.splitlines()[0].rstrip(".").lower()) == 1, reason
        assert all(text in reason for text in more), reason
        assert reason.endswith(" Request ID: Root=1-abc;def.") and "\n" not in reason and ".." not in reason
        assert "None" not in reason and "developer.mozilla" not in reason
        assert _may_pass(error.value) is again
        assert _asked_to_wait(error.value) == (55 if "RateLimit" in headers else 7 if "Retry-After" in headers else 0)


def test_a_hub_that_is_away_or_hangs(hub, finished):
    result = push(hub, finished, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 2 and "could not be pushed: [Errno 111] Connection refused" in result.stderr
    hub.fail("/repos/create", delay=60, times=99)
    code = """
import sys
from pathlib import Path
from hfgen.hub import push
push.PATIENCE = 0.2
try:
    push.push_folder(Path(sys.argv[1]), "ada/digits")
except push.UserError as error:
    print(error)
"""
    assert "could not be pushed: timed out. Push it later" in hub.python(code, finished, token=ADA, hurry=True)


def test_the_token_is_shown_nowhere(hub, finished):
    hub.signature = f"?signature={ADA}"  # the client logs the addresses that it tries again
    hub.fail("PUT /lfs/", status=503, times=99, message=f"{ADA} is not welcome")
    result = push(hub, finished, "--hub_token", ADA, token=None)
    assert result.returncode == 2
    assert "?signature=***" in result.stderr and "*** is not welcome" in result.stderr
    assert "Retrying in" in result.stderr  # by the client's logger
    assert ADA not in result.stdout + result.stderr


BACKGROUND = """
import os, sys, time
from pathlib import Path
from hfgen.hub.background import BackgroundPush

folder, said = Path(sys.argv[1]), []

def save(text):  # as a run does: files are replaced
    (folder / "new").write_text(text)
    os.replace(folder / "new", folder / "README.md")

pushes = BackgroundPush(folder, "ada/digits", None, said.append)
for title in ("first", "second", "third"):
    save(f"---\\ntags: [{title}]\\n---\\n")
    pushes.push(folder, title)
assert not said, "pushing held the run up"
while not said or "third" not in said[-1]:
    pushes.poll()
    time.sleep(0.05)
assert [text.partition("(")[2] for text in said] == ["first)", "third)"], said
pushes.finish()

save("---\\ntags: [hangs]\\n---\\n")
pushes.push(folder, "hangs")
while not pushes._process or not Path(f"/proc/{pushes._process.pid}").exists():
    time.sleep(0.05)
start = time.monotonic()
pushes.close()
assert time.monotonic() - start < 30 and not list(folder.glob(".tmp-*"))
print("done")
"""


def test_a_push_whose_output_is_gone_ends_no_run(finished, tmp_path):
    said = []
    pushes = BackgroundPush(tmp_path, "ada/digits", None, said.append)
    pushes.push(finished, "tidied")
    pushes._process.wait()
    (tmp_path / ".tmp-push-output").unlink()
    pushes.finish()
    assert "the push 'tidied' failed: the process ended with code 2" in said[-1]


def test_in_the_background_the_newest_wins(hub, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "digits")
    hub.create("ada/digits")
    for delay in (4, 0, 60):
        hub.fail("/commit/", delay=delay)
    assert hub.python(BACKGROUND, folder, token=ADA).strip() == "done"
    repo = hub["ada/digits"]
    assert repo.history()[:3] == ["third", "first", "initial commit"]
    first = repo.commits[repo.commits[repo.refs["main"]].parent]
    assert first.files["README.md"].content == b"---\ntags: [first]\n---\n"  # though it was replaced meanwhile


def test_options():
    script = Command("push")
    assert script.read_options("--folder out/ddpm-digits --hub_model_id user/x".split()).folder == "out/ddpm-digits"
    for options, missing in (([], "--folder"), (["--folder", "out"], "--hub_model_id")):
        with pytest.raises(UserError, match=f"{missing} is missing"):
            script.read_options(options)
    result = run("push_to_hub", "--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert result.returncode == 0 and "--create_pr" in result.stdout and "| torch" not in result.stderr
    with pytest.raises(UserError, match="`hub_strategy` every_save pushes what is saved during training"):
        TrainingConfig(hub_strategy="every_save").validate()


LOAD = """
import sys
import torch
from diffusers import DDPMPipeline
from hfgen import GANPipeline, load_pipeline

def images(pipeline, **options):
    return pipeline(batch_size=2, generator=torch.Generator().manual_seed(7), output_type="pt", **options)

def same(found, wanted):
    for name in ("unet", "model"):
        if hasattr(wanted, name):
            first, second = (getattr(pipeline, name).state_dict() for pipeline in (found, wanted))
            assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)

folder, gan = sys.argv[1:]
local = DDPMPipeline.from_pretrained(folder)
arrays = [
    pipeline(batch_size=2, generator=torch.Generator().manual_seed(7), output_type="np", num_inference_steps=3).images
    for pipeline in (local, DDPMPipeline.from_pretrained("ada/digits"), load_pipeline("ada/digits", revision="try"))
]
assert (arrays[0] == arrays[1]).all() and (arrays[0] == arrays[2]).all()
same(DDPMPipeline.from_pretrained("ada/digits"), local)
for token in ("hf_wrong", False):
    try:
        DDPMPipeline.from_pretrained("ada/digits", token=token, cache_dir=sys.argv[2] + "-cache")
    except Exception as error:
        print("refused:", type(error).__name__)
    else:
        raise AssertionError("a private repository was given to a stranger")

local = GANPipeline.from_pretrained(gan)
local.push_to_hub("ada/gan", private=True, commit_message="By the pipeline")
found = GANPipeline.from_pretrained("ada/gan")
same(found, local)
assert torch.equal(images(found).images, images(local).images)
with torch.no_grad():
    next(local.model.parameters()).add_(1)
local.push_to_hub("ada/gan", create_pr=True)
"""


def test_what_was_pushed_is_what_is_loaded(hub, finished, tmp_path):
    assert push(hub, finished, "--private").returncode == 0
    assert push(hub, finished, "--revision", "try").returncode == 0
    torch.manual_seed(0)
    generator = MLPGenerator(latent_dim=4, sample_size=8, out_channels=1, base_channels=8)
    GANPipeline(generator).save_pretrained(tmp_path / "gan")
    printed = hub.python(LOAD, finished, tmp_path / "gan", token=ADA)
    assert printed.count("refused:") == 2
    repo = hub["ada/gan"]
    assert repo.private and repo.history() == ["By the pipeline", "initial commit"] and len(repo.pulls) == 1
    weights = "model/diffusion_pytorch_model.safetensors"
    assert repo.files()[weights] == (tmp_path / "gan" / weights).read_bytes() != repo.files("refs/pr/1")[weights]


SAVING = ["--save_model_epochs", "0.001", "--hub_strategy", "every_save", "--checkpointing_steps", "6"]


def test_a_run_pushes_what_it_saves(hub, tmp_path):
    hub.fail("PUT /lfs/", drop="early")
    folder = tmp_path / "digits"
    options = [*TINY, *SAVING, "--output_dir", folder, "--push_to_hub", "--hub_private_repo", "--hub_token", ADA]
    result = run("train_ddpm", *options, env=hub.environment(hurry=True))
    assert result.returncode == 0, result.stderr
    assert f"Pushed:   {hub.url}/ada/digits\n" in result.stdout
    repo = hub["ada/digits"]
    files, history = repo.files(), repo.history()
    assert repo.private and set(files) == DDPM_FILES | {".gitattributes"}
    changed = {"README.md", "run.json"}  # which say where things are
    assert all(files[name] == (folder / name).read_bytes() for name in DDPM_FILES - changed)
    assert history[0] == "Upload pipeline" and history[-2].startswith("Training in progress: 16 images"), history
    assert b'from_pretrained("ada/digits")' in files["README.md"]
    assert ADA not in result.stdout + result.stderr
    assert not list(folder.glob(".tmp-*"))
    for path in content(folder).values():
        assert ADA.encode() not in path
    assert "'***'" in json.loads((folder / "run.json").read_text())["command"]


def test_a_hub_that_fails_ends_no_run(hub, tmp_path):
    hub.fail("/commit/", status=500, times=999)
    folder = tmp_path / "digits"
    options = [*TINY, *SAVING, "--output_dir", folder, "--push_to_hub"]
    result = run("train_ddpm", *options, env=hub.environment(ADA, hurry=True))
    assert result.returncode == 2
    assert "Warning: the push 'Training in progress: 16 images' failed: Server error '500" in result.stdout
    assert "Done: 96 images" in result.stdout
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(
        f"error: the pipeline in {folder} is complete, but could not be pushed: Server error '500"
    )
    assert message.endswith(f"hfgen push --folder {folder} --hub_model_id ada/digits")
    assert (folder / "model_index.json").exists() and not list(folder.glob(".tmp-*"))
    assert json.loads((folder / "run.json").read_text())["images_seen"] == 96


CHECK = """
import sys
from hfgen.hub.push import UserError, check_push
for name, token in zip(("ada/digits", "bob/digits"), sys.argv[1:]):
    try:
        check_push(name, token=token)
    except UserError as error:
        print(error)
"""


def test_a_token_that_cannot_push_is_found_before_training(hub, tmp_path):
    options = [*TINY, "--output_dir", tmp_path / "digits", "--push_to_hub", "--hub_token", "hf_wrong"]
    result = run("train_ddpm", *options, env=hub.environment())
    assert result.returncode == 2 and result.stderr.startswith("error: --push_to_hub: Invalid user token")
    assert "hf_wrong" not in result.stderr and not (tmp_path / "digits").exists()
    hub.create("bob/digits")  # making what is there is no error, though it is another's
    reader, others = hub.python(CHECK, READER, ADA).splitlines()
    assert reader.startswith("`push_to_hub`: the token of the Hub may only read")
    assert others.startswith("`push_to_hub`: 403 Forbidden: You don't have the rights to do this. ")
