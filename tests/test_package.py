"""The package as a whole: imports, layers, typing marker."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import hfgen
from hfgen.pipelines import export
from hfgen.registry import families


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


SOURCES = sorted((ROOT / "hfgen").rglob("*.py"))
LAYERS = (  # a part may import those below its line
    {"commands"},
    {"demo"},
    {"families"},
    {"training"},
    {"hub", "evaluation"},
    {"sampling"},
    {"pipelines", "data", "models"},
    {"objectives"},  # formulas, also of likelihoods that models and pipelines compute
    {"registry"},
    {"runtime"},
)
LIBRARIES = {  # who may import what is not meant for all
    "accelerate": {"runtime", "sampling", "evaluation", "training", "demo", "commands"},
    "datasets": {"data"},
    "gradio": {"demo"},
    "peft": {"training"},
    "huggingface_hub": {"hub", "evaluation", "pipelines", "data"},
    "transformers": {"evaluation", "pipelines"},
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "hfgen").parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it; a public name of hfgen counts as the module that it is in."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is relative"
            names = {alias.name for alias in node.names} if node.module == "hfgen" else set()
            modules |= {hfgen._PUBLIC.get(name, f"hfgen.{name}") for name in names} or {str(node.module)}
    return modules - {"hfgen", "hfgen.__version__"}


@pytest.mark.parametrize("level", range(len(LAYERS)), ids=[", ".join(sorted(parts)) for parts in LAYERS])
def test_imports_go_down(level):
    below = set().union(*LAYERS[level + 1 :])
    for path in SOURCES:
        if (part := part_of(path)) in LAYERS[level]:
            for words in (name.split(".") for name in imports_of(path)):
                if words[0] == "hfgen":
                    assert words[1] in below | {part}, f"{path} imports {'.'.join(words)}"
                assert part in LIBRARIES.get(words[0], {part}), f"{path} imports {words[0]}"


def test_every_part_has_its_layer():
    assert {part_of(path) for path in SOURCES} - {"__init__", "__main__"} == set().union(*LAYERS)
    for path in (ROOT / "scripts").glob("*.py"):
        if "main(verb=" in path.read_text():  # a door
            assert imports_of(path) == {"hfgen.commands.main"}, path


def parts_of(family) -> set[str]:
    """Where a family's own code is."""
    entries = [part for entry in family.pipelines for part in (entry.pipeline, entry.adapter, entry.options)]
    return {part for part in (family.options, family.recipe, *entries) if part is not None}


def words_in(node: ast.AST) -> set[str]:
    """The strings and the names of classes."""
    nodes = list(ast.walk(node))
    strings = {inner.value for inner in nodes if isinstance(inner, ast.Constant) and isinstance(inner.value, str)}
    names = {getattr(inner, "id", None) or getattr(inner, "attr", "") for inner in nodes}
    return strings | {name for name in names if name[:1].isupper()}


def comparisons(tree: ast.AST):
    """Yields where code may take one of several ways, with the words that decide."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield node, words_in(node)
        elif isinstance(node, ast.match_case):
            yield node.pattern, words_in(node.pattern)
        elif isinstance(node, ast.Dict):  # a table by family is a ladder, too
            yield node, {key.value for key in node.keys if isinstance(key, ast.Constant)}
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            if name in ("isinstance", "issubclass", "hasattr", "startswith", "endswith"):
                yield node, set().union(*map(words_in, node.args))


@pytest.mark.parametrize("family", families().values(), ids=lambda family: family.name)
def test_nobody_else_asks_for_a_family(family):
    """No module outside a family compares its name or its classes: whoever has to know asks what it can do."""
    names = {family.name, family.name.upper()} | {part.partition(":")[2] for part in parts_of(family)}
    own = {part.partition(":")[0] for part in parts_of(family)} | {"hfgen.__init__"}  # the table of public names
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node, words in comparisons(ast.parse(path.read_text())) if module not in own else ():
            if not module.startswith(f"hfgen.families.{family.name}."):
                assert not words & names, f"{path}:{node.lineno} asks for {words & names}"


def texts_of(tree: ast.AST):
    """Yields the strings of a program as they are put together, without docstrings; what is filled in is `{}`."""
    skip = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skip.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            skip |= set(node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield "".join(map(str, parts)), node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skip:
            yield node.value, node.lineno


def test_only_commands_know_flags():
    """Below them, messages name options in backticks; what is left are whole commands that start with a program."""
    program = re.compile(r"(hfgen \w+|hf download|scripts/\w+\.py|torchrun|accelerate launch|curl)[^`]*")
    for path in SOURCES:
        if part_of(path) != "commands":
            for text, line in texts_of(ast.parse(path.read_text())):
                flag = re.search(r"--[a-z]", program.sub("", text))
                assert flag is None, f"{path}:{line} spells a flag: {text!r}"


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
