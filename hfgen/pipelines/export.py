"""The code that travels with a checkpoint: a module and all that it imports from hfgen and from its own package.

Imports of these are made relative, as all files lie in one folder. Each file is named after its module and a digest of
its text, in which the digests of its imports are. What saves and loads checkpoints in hfgen stays, and `STAND_INS`
take its place.
Imports of other packages stay as they are: a machine without them cannot run the code.
"""

import ast
import hashlib
import importlib.util
from pathlib import Path

from hfgen.registry import pipeline_entries
from hfgen.runtime.errors import UserError

TRAVELS = ("hfgen.models.", "hfgen.pipelines.", "hfgen.objectives.", "hfgen.runtime.")
STAND_INS = {
    ("hfgen.models.base", "ModelMixin"): "hfgen.models.portable",
    ("hfgen.pipelines.self_contained", "SelfContained"): "hfgen.pipelines.portable",
}
STAY = {module for module, _ in STAND_INS}
PREFIXES = {"hfgen.models.": "modeling_hfgen_", "hfgen.pipelines.": "pipeline_hfgen_", "hfgen.": "hfgen_"}


def packages() -> set[str]:
    """Returns the top-level packages whose modules travel and may be named by checkpoints: ours, and those of
    families."""
    tops = {entry.pipeline.partition(":")[0].partition(".")[0] for entry in pipeline_entries().values()}
    return tops - {"diffusers", "transformers"}


def code_of(module: str) -> dict[str, str]:
    """Translates the files of an installed module into those that travel.

    Returns:
        `dict`: Their texts by name, the module's own last; empty for a module of a package that declares no family.

    Raises:
        UserError: For an import that cannot travel.
    """
    top = module.partition(".")[0]
    if top not in packages() or (top == "hfgen" and not module.startswith(TRAVELS)):
        return {}
    return _translate(module, ())


def _translate(module: str, importers: tuple[str, ...]) -> dict[str, str]:
    if module in importers:
        raise UserError(f"{' imports '.join((*importers, module))}: code that imports itself cannot travel.")
    file = _file(module)
    if file is None:
        raise UserError(
            f"{' imports '.join((*importers, module))}, which has no file of Python code that could travel."
        )
    text = file.read_text(encoding="utf-8")
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(text)
    files: dict[str, str] = {}
    replacements: dict[ast.stmt, str] = {}

    def add(name: str) -> str:
        code = _translate(name, (*importers, module))
        files.update(code)
        return list(code)[-1]

    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if not _concerns(source, module):
                continue
            modules: list[str] = []
            names: dict[str, list[str]] = {}
            for alias in node.names:
                inner, rename = f"{source}.{alias.name}", f" as {alias.asname}" if alias.asname else ""
                there = STAND_INS.get((source, alias.name), source)
                if there in STAY:
                    raise UserError(
                        f"{module} imports {alias.name} of {source}, which does not travel with checkpoints."
                    )
                if _file(inner) is not None:  # a module of a package
                    modules.append(f"from . import {add(inner)} as {alias.asname or alias.name}")
                else:
                    names.setdefault(there, []).append(alias.name + rename)
            statements = [f"from .{add(there)} import {', '.join(them)}" for there, them in names.items()]
            statements += modules
            replacements[node] = f"\n{' ' * node.col_offset}".join(statements)
        elif isinstance(node, ast.Import):
            concerned = [alias for alias in node.names if _concerns(alias.name, module)]
            if not concerned:
                continue
            (alias, *others) = concerned
            if others or len(node.names) > 1 or (alias.asname is None and "." in alias.name):
                raise UserError(
                    f"{file}, line {node.lineno}: `{ast.unparse(node)}` cannot travel with a checkpoint: write `from "
                    "PACKAGE import MODULE`."
                )
            replacements[node] = f"from . import {add(alias.name)} as {alias.asname or alias.name}"
    text = _replace(text, replacements)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return files | {f"{_base_name(module, tree)}__{digest}": text}


def _concerns(source: str, importer: str) -> bool:
    """Returns whether an import is one of hfgen or of the importer's own package.

    Raises:
        UserError: If it is one of hfgen that does not travel.
    """
    top = source.partition(".")[0]
    if top == "hfgen" and not f"{source}.".startswith(TRAVELS):
        raise UserError(
            f"{importer} imports {source}, which does not travel with checkpoints. A pipeline or a network may import "
            f"{', '.join(name.rstrip('.') for name in TRAVELS)}, its own package, and what runs without hfgen."
        )
    return top in ("hfgen", importer.partition(".")[0])


def _file(module: str) -> Path | None:
    """Finds the source of a module; `None` if there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of a name in a module that is no package
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _base_name(module: str, tree: ast.Module) -> str:
    for package, prefix in PREFIXES.items():
        if module.startswith(package):
            return prefix + module.removeprefix(package).replace(".", "_")
    is_pipeline = any(isinstance(node, ast.ClassDef) and node.name.endswith("Pipeline") for node in tree.body)
    return ("pipeline_" if is_pipeline else "modeling_") + module.replace(".", "_")


def _replace(text: str, replacements: dict[ast.stmt, str]) -> str:
    """Puts other statements in the place of some, whose first and last lines and columns are known."""
    lines = text.encode().splitlines(keepends=True)  # columns are bytes
    for node, statement in sorted(replacements.items(), key=lambda item: -item[0].lineno):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        lines[first : last + 1] = [before + statement.encode() + after]
    return b"".join(lines).decode()
