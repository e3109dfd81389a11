"""The package as a whole: imports, layers, typing marker."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import hfgen
from hfgen.pipelines import export


def test_public_names_exist():
    for name in hfgen.__all__:
        assert getattr(hfgen, name) is not None
    assert set(hfgen.__all__) <= set(dir(hfgen))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        hfgen.absent  # noqa: B018


def test_importing_is_lazy():
    modules = "hfgen, hfgen.commands.cli, hfgen.training.config, hfgen.data.config, hfgen.evaluation.config"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_typed():
    assert (ROOT / "hfgen" / "py.typed").exists()


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"hfgen.{alias.name}" for alias in node.names} if node.module == "hfgen" else {node.module or ""}
    return found


LOW = {"registry", "runtime"}
DEEP = LOW | {"models", "objectives", "data", "pipelines"}
ALLOWED = {  # which parts of hfgen each part may import, beside itself
    "models": LOW,
    "objectives": LOW,
    "data": LOW,
    "pipelines": LOW,
    "hub": LOW,
    "evaluation": DEEP | {"sampling"},
    "training": DEEP | {"sampling", "evaluation", "hub"},
}


@pytest.mark.parametrize("part", ALLOWED)
def test_arrows_run_one_way(part):
    for path in (ROOT / "hfgen" / part).rglob("*.py"):
        for name in imports_of(path):
            words = name.split(".")
            if words[0] == "hfgen" and name not in ("hfgen", "hfgen.__version__"):
                assert words[1] in ALLOWED[part] | {part}, f"{path} imports {name}"
            if words[0] == "accelerate":
                assert part in ("training", "evaluation"), path
            if words[0] == "huggingface_hub":
                assert part in ("hub", "evaluation") or path.name == "self_contained.py", path
            if words[0] == "datasets":
                assert part == "data", path


def test_evaluation_asks_the_hub_only_when_it_must():
    for path in (ROOT / "hfgen" / "evaluation").glob("*.py"):
        for node in ast.parse(path.read_text()).body:  # what is imported inside functions is not in here
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "huggingface_hub" not in ast.unparse(node), path


def test_models_and_pipelines_travel_alone():
    """These files are shipped with checkpoints, with those that they import: what is in a folder needs torch, numpy,
    diffusers, PIL, the standard library and its neighbours."""
    stay = {"hfgen.models.base", "hfgen.pipelines.self_contained", "hfgen.pipelines.export"}
    for part in ("models", "pipelines"):
        for path in (ROOT / "hfgen" / part).glob("[a-z]*.py"):
            module = f"hfgen.{part}.{path.stem}"
            for name, text in export.code_of(module).items() if module not in stay else ():
                for node in ast.walk(ast.parse(text)):
                    if isinstance(node, ast.Import):
                        found = {alias.name.split(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and not node.level:
                        found = {node.module.split(".")[0]}
                    else:
                        continue
                    allowed = {"torch", "numpy", "diffusers", "PIL"} | sys.stdlib_module_names
                    assert found <= allowed, f"{name} imports {found}"


def test_no_pickle_anywhere():
    for path in [*(ROOT / "hfgen").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        text = path.read_text()
        if path.name == "inception.py":  # the published weights, after their SHA-256 is verified, and tensors only
            allowed = 'torch.load(path, map_location="cpu", weights_only=True)'
            assert text.count(allowed) == 1
            text = text.replace(allowed, "")
        for word in ("import pickle", "torch.load", "torch.save", "allow_pickle=True"):
            assert word not in text, f"{path} has {word}"
