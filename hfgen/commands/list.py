"""Lists the families that can be trained, and their presets."""

from collections.abc import Sequence

from hfgen.registry import broken, families
from hfgen.runtime.errors import UserError


def main(argv: Sequence[str]) -> None:
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: hfgen list\n\n{__doc__}")
        return
    if argv:
        raise UserError(f"hfgen list takes no arguments: leave out {argv[0]!r}.")
    faults = {name: str(error) for name, error in broken().items()}
    width = max(map(len, [*families(), *faults]))
    for family in families().values():
        ours = family.origin == "hfgen"
        fault = None if ours else family.fault()
        if fault:
            faults[family.name] = fault
            continue
        print(f"{family.name:<{width}}  {family.title}" + ("" if ours else f" ({family.origin})"))
        for name, preset in (family.load("presets") or {}).items():
            line = (preset.__doc__ or "").strip().partition("\n")[0]
            default = " (the default)" if name == family.default_preset else ""
            print(f"  {name:<15} {line}{default}".rstrip())
    for name, fault in faults.items():
        print(f"{name:<{width}}  is broken: {fault}")
