"""The registry: families are found by name without importing torch, and a broken plug-in harms no other family."""

import subprocess
import sys
import textwrap

import pytest

from hfgen import registry
from hfgen.registry import broken, families, family_of, find_family, load, pipeline_entries
from hfgen.runtime.errors import UserError

WORKING = """
    from hfgen.registry import Family, PipelineEntry

    FAMILY = Family(
        name="{name}", title="A test", options="hfgen.families.vae.options:VAEConfig",
        recipe="hfgen.families.vae.recipe:VAERecipe", pipelines=(PipelineEntry("a.b:OtherPipeline", "a.c:Adapter"),),
    )
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs packages that declare families: a module each, by its source."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**modules):
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            folder = tmp_path / f"{module}_dist-1.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-dist\nVersion: 1.0\n")
            (folder / "entry_points.txt").write_text(f"[hfgen.families]\n{module} = {module}:FAMILY\n")
            monkeypatch.delitem(sys.modules, module, raising=False)
        families.cache_clear()

    yield write
    families.cache_clear()
    for module in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[module]


OURS = ["ddpm", "gan", "vae", "autoregressive", "flow", "translation"]


def test_ours():
    assert list(families())[: len(OURS)] == OURS
    assert find_family("gan").name == "gan"
    for family in families().values():
        assert family.fault() is None
    assert not broken()


def test_an_unknown_family_suggests_the_nearest():
    with pytest.raises(UserError, match="no family 'ddmp': the families are ddpm, gan, vae.* Did you mean ddpm"):
        find_family("ddmp")
    with pytest.raises(UserError, match="no family 'xyzzy'"):
        find_family("xyzzy")


def test_pipelines_are_known_by_class_name():
    entries = pipeline_entries()
    assert entries["DDPMPipeline"].pipeline == "diffusers:DDPMPipeline"
    assert family_of("GANPipeline").name == "gan"
    assert family_of("StableDiffusionPipeline") is None


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(UserError, match="`preset` stylegan does not exist for gan, .* Did you mean stylegan2"):
        find_family("gan").preset_values("stylegan")
    with pytest.raises(UserError, match="`preset` any does not exist for bare, which has: none"):
        registry.Family("bare", "", "a:b", "a:c", ()).preset_values("any")


def test_a_plug_in_is_found(install):
    install(plugin_one=WORKING.format(name="one"))
    family = find_family("one")
    assert family.origin == "plugin_one-dist"
    assert family_of("OtherPipeline") is family
    assert list(families()) == [*OURS, "one"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "'plugin_bad' that plugin_bad-dist declares is not at plugin_bad:FAMILY.*no_such"),
        ("OTHER = 1", "'plugin_bad' that plugin_bad-dist declares is not at plugin_bad:FAMILY"),
        ("FAMILY = 3", "plugin_bad:FAMILY of plugin_bad-dist is of type int, not"),
        ("raise RuntimeError('no licence')", "plugin_bad:FAMILY of plugin_bad-dist.*RuntimeError: no licence"),
        ("def", "plugin_bad:FAMILY of plugin_bad-dist.*SyntaxError"),
        (WORKING.format(name="toy ar/x"), "plugin_bad:FAMILY of plugin_bad-dist.*name is 'toy ar/x', but must be"),
        (
            WORKING.format(name="x").replace('Adapter"),)', 'Adapter"))'),
            "pipelines is .*must be a tuple of PipelineEntry",
        ),
        (WORKING.format(name="gan"), "plugin_bad-dist declares a family 'gan', which hfgen has already: uninstall"),
    ],
)
def test_a_broken_plug_in_is_named_and_harms_no_other(install, source, message):
    install(plugin_bad=source, plugin_good=WORKING.format(name="good"))
    assert list(families()) == [*OURS, "good"]
    assert find_family("gan").origin == "hfgen"
    assert list(broken()) == ["plugin_bad"]
    with pytest.raises(UserError, match=message):
        find_family("plugin_bad")


def test_a_part_that_is_not_where_it_is_declared(install):
    install(plugin_lost=WORKING.format(name="lost").replace("options:VAEConfig", "options:Absent"))
    family = find_family("lost")
    message = "the options of the family 'lost' \\(plugin_lost-dist\\) is not at hfgen.families.vae.options:Absent"
    with pytest.raises(UserError, match=message):
        family.load("options")
    assert "is not at hfgen.families.vae.options:Absent" in family.fault()
    install(plugin_half=WORKING.format(name="half"))
    assert find_family("half").fault() == "there is no module a.b, where plugin_half-dist declares a part of 'half'."
    assert family.load("card") is None


def test_load():
    assert load("json:dumps", "a test").__name__ == "dumps"
    with pytest.raises(UserError, match="a test is not at json:absent: .*Fix its declaration"):
        load("json:absent", "a test")


def test_declarations_import_no_torch():
    code = """
        import sys
        from hfgen.registry import families

        for family in families().values():
            assert family.fault() is None, family.fault()
            for preset in family.load("presets") or ():
                family.preset_values(preset)
        print("torch" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("declared", "source", "message"),
    [
        ('options="plugin_bad:tiny"', "def tiny(): return {}", "options of the family 'bad' .* must be a dataclass"),
        ('presets="plugin_bad:PRESETS"', "PRESETS = [1]", "presets of the family 'bad' .* must be a dict"),
        ('recipe="no.such.module:Recipe"', "", "there is no module no.such.module"),
    ],
)
def test_a_part_that_is_not_what_it_has_to_be_ends_no_training(install, declared, source, message):
    from hfgen.training.options import collect

    name = declared.partition("=")[0]
    lines = WORKING.format(name="bad").replace("hfgen.families.vae.recipe:VAERecipe", "hfgen.registry:Family")
    lines = lines.replace("a.b:Other", "hfgen.registry:").replace("a.c:Adapter", "hfgen.registry:Family")
    old = {"options": 'options="hfgen.families.vae.options:VAEConfig"', "recipe": 'recipe="hfgen.registry:Family"'}
    lines = (
        lines.replace(old[name], declared) if name in old else lines.replace('name="bad"', f'name="bad", {declared}')
    )
    install(plugin_bad=textwrap.dedent(lines) + source)
    assert families()["bad"].fault()
    with pytest.raises(UserError, match=message):
        collect("bad")


@pytest.mark.parametrize(("source", "message"), [("Recipe = 3", "must derive from"), (None, "lacks loss, pipeline")])
def test_a_recipe_that_lacks_a_part(install, source, message):
    from hfgen.training.api import recipe_of

    install(plugin_recipe=source or "from hfgen.training.recipe import Recipe as Base\nclass Recipe(Base): pass")
    family = find_family("vae")
    broken_family = type(family)(**{**vars(family), "recipe": "plugin_recipe:Recipe"})
    with pytest.raises(UserError, match=f"plugin_recipe:Recipe, the recipe of 'vae', {message}"):
        recipe_of(broken_family)
