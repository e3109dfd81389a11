"""What of a folder is published: what was looked at, and our own code."""

import json

import pytest
from hub.test_push import ddpm

from hfgen.hub.contents import pipeline_contents, space_contents
from hfgen.hub.push import pipeline_files
from hfgen.hub.space import app_of, write_space
from hfgen.models.mlp_gan import MLPGenerator
from hfgen.pipelines.gan import GANPipeline
from hfgen.runtime.errors import UserError

WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def bytes_of(contents):
    return {
        name: content if isinstance(content, bytes) else content.read_bytes() for name, content in contents.items()
    }


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def gan(tmp_path):
    GANPipeline(MLPGenerator(latent_dim=4, sample_size=8, out_channels=1, base_channels=8)).save_pretrained(
        tmp_path / "gan"
    )
    (tmp_path / "gan" / "README.md").write_text("# It\n")
    return tmp_path / "gan"


def test_what_was_saved_is_published_as_it_is(gan, tmp_path):
    assert bytes_of(pipeline_contents(gan)) == tree(gan)
    ddpm().save_pretrained(tmp_path / "ddpm", max_shard_size="4KB", variant="fp16")
    assert bytes_of(pipeline_contents(tmp_path / "ddpm")) == tree(tmp_path / "ddpm")


def test_foreign_code_and_files_stay_behind(gan):
    expected = tree(gan)
    for name in ("evil.py", "model/evil.py", "model/evil.json", "model/more/config.json", "model/pytorch_model.bin"):
        (gan / name).parent.mkdir(exist_ok=True)
        (gan / name).write_text("evil")
    for path in gan.rglob("*.py"):  # also under the names of ours
        path.write_text("evil")
    for file, values in (
        ("model_index.json", {"auto_map": {"AutoModel": "evil.Evil"}, "_class_name": ["evil", "GANPipeline"]}),
        ("model/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
    ):
        (gan / file).write_text(json.dumps(json.loads((gan / file).read_text()) | values))
    assert bytes_of(pipeline_contents(gan)) == expected


def test_folders_without_code_get_it(gan):
    """As a version of hfgen before there was any wrote them."""
    expected = tree(gan)
    for path in gan.rglob("*.py"):
        path.unlink()
    index = json.loads((gan / "model_index.json").read_text())
    index |= {"_class_name": "GANPipeline", "model": ["hfgen.models.mlp_gan", "MLPGenerator"]}
    (gan / "model_index.json").write_text(json.dumps(index))
    assert bytes_of(pipeline_contents(gan)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (WEIGHTS, None, "is not complete: there are no weights of model"),
        (WEIGHTS, b"evil" * 10**5, "cannot be published: .*[Hh]eader"),
        ("model/config.json", b"[]", "cannot be loaded"),
        ("model/config.json", None, "is not complete: there is no model/config.json"),
        ("run.json", b"[1]", "run.json cannot be published: it holds no mapping"),
        ("run.json", b'{"a":' * 10**5, "run.json cannot be published"),
        ("README.md", b"\xff", "README.md cannot be published"),
        ("samples.png", b"text", "samples.png cannot be published: it is no PNG file"),
        ("model_index.json", b'{"_class_name": "StableDiffusionPipeline"}', "which hfgen does not sample from"),
        ("model_index.json", None, "holds no pipeline"),
    ],
)
def test_what_is_not_whole_is_refused(gan, tmp_path, name, content, message):
    if content is None:
        (gan / name).unlink()
    else:
        (gan / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        pipeline_contents(gan)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        write_space(tmp_path / "space", str(gan))
    assert not (tmp_path / "space").exists()


def test_apps_of_spaces_are_known(gan, tmp_path):
    for number, options in enumerate(({}, {"max_images": 4, "provenance": False})):
        write_space(tmp_path / f'it\'s "{number}"', str(gan), **options)
    write_space(tmp_path / "hub", "ada/digits", "v1")
    for folder in tmp_path.glob("*[0-9b]*"):
        if folder != gan:
            assert app_of(folder / "app.py") == (folder / "app.py").read_text()
            assert bytes_of(space_contents(folder)) == tree(folder)
    file = tmp_path / "hub" / "requirements.txt"
    file.write_text(file.read_text() + "--index-url https://evil\n")
    with pytest.raises(UserError, match="which `hfgen demo` did not write"):
        space_contents(tmp_path / "hub")
    app = (tmp_path / "hub" / "app.py").read_text()
    for text in (app + "evil()\n", app.replace("'v1'", "evil()"), app.replace("'v1'", "'v1' + evil('')")):
        (tmp_path / "hub" / "app.py").write_text(text)
        with pytest.raises(UserError, match="is not what this version of hfgen writes"):
            space_contents(tmp_path / "hub")


def test_heads_of_cards_that_cannot_be_read(gan, tmp_path):
    for text in ("---\nlicense: [\n---\n", "---\n- 1\n---\n", "---\nlicense: !!python/name:os.system\n---\n"):
        (gan / "README.md").write_text(text)
        with pytest.raises(UserError, match="the head of .*README.md cannot be read") as error:
            write_space(tmp_path / "space", str(gan))
        assert "\n" not in str(error.value)


def test_code_that_a_pipeline_carries_is_listed(tmp_path):
    index = {"_class_name": ["pipeline_hfgen_ours", "Ours"], "model": ["modeling_ours", "Model"]}
    index["../other"] = ["a", "B"]
    code = "from .helper__0123456789ab import f\nfrom .absent import g\nfrom .....other.secret import h\n"
    (tmp_path / "it" / "model").mkdir(parents=True)
    (tmp_path / "it" / "model_index.json").write_text(json.dumps(index))
    for name in ("it/pipeline_hfgen_ours.py", "it/model/modeling_ours.py", "it/notes.py", "other/secret.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "it" / "pipeline_hfgen_ours.py").write_text(code)
    (tmp_path / "it" / "helper__0123456789ab.py").write_text("from .pipeline_hfgen_ours import Ours\n")
    found = {file.as_posix() for file in pipeline_files(tmp_path / "it")}
    code = {"pipeline_hfgen_ours.py", "helper__0123456789ab.py", "model/modeling_ours.py"}
    assert found == {"model_index.json", *code}
