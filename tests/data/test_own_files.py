"""What a data set names outside of itself is not read, unless that is allowed; what is its own is, wherever it is."""

import dataclasses
import io
import json
import os
import tarfile
import zipfile

import datasets
import pyarrow as pa
import pytest
from hub.server import ADA, File
from PIL import Image
from pyarrow import parquet

from hfgen.data.cache import open_images
from hfgen.data.own_files import OwnFiles
from hfgen.data.streams import StreamedStream
from hfgen.runtime.errors import UserError


def png(value):
    content = io.BytesIO()
    Image.new("L", (6, 6), value).save(content, format="PNG")
    return content.getvalue()


def rows(*paths, bytes=None):
    """A table whose images are in files."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array([{"bytes": bytes, "path": str(path)} for path in paths], kind)})


@pytest.fixture
def private(tmp_path):
    """A picture that nobody gave to train on, beside a folder called `set`, in which a link leads to it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "me.png").write_bytes(png(7))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "home")
    return tmp_path / "home" / "me.png"


def values(config, **changes):
    """The gray value of each image, streamed or not."""
    config = dataclasses.replace(config, **changes)
    if config.streaming:
        return StreamedStream(config, 0).read(0, 2)["image"][:, 0, 0, 0].tolist()
    return open_images(config).images[:, 0, 0, 0].tolist()


FORMS = ["{private}", "{set}/../home/me.png", "{set}/link/me.png", "zip://me.png::{private}", "file://{private}"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS[:3])
def test_a_file_that_a_row_names_elsewhere(config, tmp_path, private, form, streaming):
    path = form.format(private=private, set=tmp_path / "set")
    parquet.write_table(rows(path, path), tmp_path / "set" / "train.parquet")
    parquet.write_table(rows(path, path), tmp_path / "set" / "more.parquet")
    config = dataclasses.replace(config, dataset_name=str(tmp_path / "set"), streaming=streaming)
    with pytest.raises(UserError, match="`dataset_name` .*set names a file that does not belong to it: .*me.png") as e:
        values(config)
    assert "\n" not in str(e.value) and "`allow_outside_files`" in str(e.value)
    assert set(values(config, allow_outside_files=True)) == {7}


def test_all_forms_of_a_path(tmp_path, private, monkeypatch):
    monkeypatch.chdir(tmp_path / "home")
    remote = ("hf://datasets/ada/set@",)
    own = (f"{tmp_path}/cache/datasets--ada--set/",)
    own_files = OwnFiles("`dataset_name` set", str(tmp_path / "set"), own, remote)
    outside = [form.format(private=private, set=tmp_path / "set") for form in FORMS]
    outside += ["me.png", f"{tmp_path}/set2/me.png", f"{tmp_path}/cache/datasets--ada--set/../other/me.png"]
    outside += ["http://localhost/me.png", "hf://datasets/ada/other@main/1.png", "hf://datasets/ada/set@main/../1.png"]
    outside += [f"reference://1.png::{tmp_path}/set/a.json", "zip://1.png::hf://datasets/ada/other@main/a.zip"]
    for path in outside:
        with pytest.raises(UserError, match="does not belong to it"):
            own_files.check(path)
    for path in (
        f"{tmp_path}/set/1.png",
        f"{tmp_path}/set/cat/../1.png",
        f"{tmp_path}/set/a::b.png",
        f"{tmp_path}/cache/datasets--ada--set/snapshots/1/a.png",
        f"zip://../../1.png::{tmp_path}/set/a.zip",
        "hf://datasets/ada/set@main/1.png",
        "zip://1.png::hf://datasets/ada/set@main/a.zip",
        None,
    ):
        own_files.check(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_that_a_readme_names_elsewhere(config, tmp_path, private, streaming):
    parquet.write_table(rows("a", "b", bytes=png(5)), tmp_path / "home" / "private.parquet")
    (tmp_path / "set" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {tmp_path}/home/private.parquet\n---\n"
    )
    config = dataclasses.replace(config, dataset_name=str(tmp_path / "set"), streaming=streaming)
    with pytest.raises(UserError, match=r"does not belong to it: .*home/private\.parquet"):
        values(config)
    assert values(config, allow_outside_files=True) == [5, 5]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_datasets_saved(config, tmp_path, private, streaming):
    own = datasets.Dataset.from_dict(
        {"image": [str(private)] * 2}, features=datasets.Features({"image": datasets.Image()})
    )
    own.save_to_disk(tmp_path / "saved")  # which puts the images into the table
    config = dataclasses.replace(config, dataset_name=str(tmp_path / "saved"), streaming=streaming)
    assert values(config) == [7, 7]
    state = tmp_path / "saved" / "state.json"
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / "home" / "it.arrow")
    state.write_text(state.read_text().replace("data-00000-of-00001.arrow", "../home/it.arrow"))
    with pytest.raises(UserError, match=r"does not belong to it: .*home/it\.arrow"):
        values(config)


@pytest.mark.parametrize("streaming", [False, True])
def test_links_in_a_folder_of_images_are_followed(config, tmp_path, private, streaming):
    """Whoever names the folder sees what is in it; what a table beside the images names is there, too."""
    os.symlink(private, tmp_path / "set" / "1.png")
    config = dataclasses.replace(config, train_data_dir=str(tmp_path / "set"), streaming=streaming)
    assert values(config) == [7, 7]
    (tmp_path / "set" / "metadata.csv").write_text("file_name\nlink/me.png\n1.png\n")
    assert values(config) == [7, 7]


CODE = """
import json, sys
from hfgen.data.columns import DEFAULT
from hfgen.data.config import DataConfig
from hfgen.data.streams import open_stream

found = {}
for name in sys.argv[2:]:
    for streaming in (False, True):
        try:
            stream = open_stream(DEFAULT, DataConfig(dataset_name=name, streaming=streaming), 0, sys.argv[1])
            found[f"{name} {streaming}"] = sorted(stream.read(0, 3)["image"][:, 0, 0, 0].tolist())
        except Exception as error:
            found[f"{name} {streaming}"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def test_images_on_the_hub(hub):
    """In archives, and as files of their own; for a private data set the token is at hand where they are opened."""
    hub.lfs, pictures = False, {f"{number}.png": png(number) for number in range(3)}
    archives = {"zip": io.BytesIO(), "tar": io.BytesIO()}
    with zipfile.ZipFile(archives["zip"], "w") as zipped, tarfile.open(fileobj=archives["tar"], mode="w") as tar:
        for name, content in pictures.items():
            zipped.writestr(name, content)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

    def create(name, files):
        repo = hub.create(f"ada/{name}", private=True, kind="datasets")
        return repo.add("main", "it", {path: File(content) for path, content in files.items()}, "ada")

    def table(*paths):
        content = io.BytesIO()
        parquet.write_table(rows(*paths), content)
        return {"train.parquet": content.getvalue()}

    commit = create("folder", pictures)
    create("zip", {"it.zip": archives["zip"].getvalue()})
    create("tar", {"it.tar": archives["tar"].getvalue()})
    create("broken", pictures)
    create("stranger", table(f"hf://datasets/ada/folder@{commit}/0.png"))
    create("nosy", table("/etc/hostname"))
    hub.fail("ada/broken/resolve/.*/2.png", times=1000, status=403)
    names = ("folder", "zip", "tar", "stranger", "nosy", "broken")
    found = json.loads(hub.python(CODE, ADA, *(f"ada/{name}" for name in names), hurry=True))
    for name in ("folder", "zip", "tar"):
        assert found[f"ada/{name} False"] == found[f"ada/{name} True"] == [0, 1, 2]
    for name in ("stranger", "nosy"):
        for streaming in (False, True):
            text = found[f"ada/{name} {streaming}"]
            assert text.startswith(f"UserError: `dataset_name` ada/{name} names a file that does not belong to it")
    for streaming in (False, True):
        text = found[f"ada/broken {streaming}"]
        assert text.startswith("UserError: ") and "403" in text and "\n" not in text and ADA not in text
