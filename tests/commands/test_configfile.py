"""Config files that are anything: one line that names the file, soon, and without a token."""

import os
import time

import pytest
from commands.test_cli import parsed

from hfgen.runtime.errors import UserError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
SECRET = "hf_Secret7"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("it.yaml", "size: 4\nsize: 8\n", "line 2, column 1: this key is there twice"),
        ("it.json", '{"size": 4, "size": 8}', "the key 'size' is there twice"),
        ("it.yaml", BOMB + "widths: *i\n", "line 2, column 8: aliases are not read"),
        ("it.yaml", "widths: &a [*a]\n", "aliases are not read"),
        ("it.yaml", "<<: {size: 4}\n<<: {size: 8}\n", "this key is there twice"),
        ("it.json", '{"size": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deeply"),
        ("it.yaml", "size: " + "[" * 2_000, "is nested too deeply"),
        ("it.json", '{"size": 1' + "0" * 5000 + "}", "is no valid JSON: Exceeds the limit"),
        ("it.json", '{"size": 4', "is no valid JSON: Expecting"),
        ("it.yaml", "size: 4\0", "is no valid YAML"),
        ("it.yaml", b"\xff\xfe\x00", "cannot be read: 'utf-8' codec"),
        ("it.yaml", "# x\n" * 30_000, "has more than 100000 bytes"),
        ("it.yaml", "size: 2020-13-45\n", "is no valid YAML"),
        ("it.yaml", "size: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("it.yaml", f"token: {SECRET}: x\n", "line 1, column 18: mapping values are not allowed here"),
        ("it.yaml", f"token: [{SECRET}\n", "is no valid YAML"),
        ("it.yaml", f"token: [{SECRET}]\n", "`token` must be text".replace("`token`", "--token")),
        ("it.yaml", f"token: *{SECRET}\n", "aliases are not read"),
        ("it.yaml", f"token: !{SECRET} x\n", "could not determine a constructor"),
        ("it.json", f'{{"token": "{SECRET}" x}}', "is no valid JSON: Expecting ',' delimiter"),
        ("it.yaml", "widths: [" + "x, " * 3_000 + "x]", "..."),
        ("it.yaml", "labels: [--size, '8']", "--labels has the entry '--size', which looks like a flag: leave it out"),
    ],
)
def test_what_is_no_config_file(tmp_path, name, text, message):
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        parsed("--config", file)
    said = str(error.value)
    assert message in said and f"--config {file}" in said, said
    assert "\n" not in said and len(said) < 3000 and SECRET not in said
    assert time.monotonic() - start < 5


def test_files_that_do_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr("hfgen.commands.configfile.PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        ("/dev/zero", "has more than"),
        (tmp_path / "pipe", "nothing has come out of it"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path, "Is a directory"),
        ("x" * 300, "name too long"),
    ):
        with pytest.raises(UserError, match=f"--config .* cannot be read: .*{message}"):
            parsed("--config", path)


def test_what_comes_out_of_a_pipe_is_read():
    """As in `--config <(...)` of a shell."""
    reading, writing = os.pipe()
    os.write(writing, b"size: 8\n")
    os.close(writing)
    assert parsed("--config", f"/dev/fd/{reading}").size == 8
    os.close(reading)


def test_a_mark_of_the_byte_order_and_plain_yaml_are_read(tmp_path):
    (tmp_path / "it.yaml").write_text("\ufeffsize: 8\nwidths:\n- 3\n<<: {rate: 1e-3}\n")
    config = parsed("--config", tmp_path / "it.yaml")
    assert (config.size, config.widths, config.rate) == (8, (3,), 0.001)
