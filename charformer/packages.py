"""A check that Python imports our folders beside this package, and no others of the same names.

Others use the names ``kernels`` and ``export`` too: Hugging Face has a package ``kernels``, and a user may have an
export.py in the current folder, which ``python -m`` puts before everything that is installed.
"""

from importlib.util import find_spec
from pathlib import Path

from charformer.errors import UserError

ROOT = Path(__file__).parents[1]
NAMES = ("kernels", "export")


def check_packages(root: Path = ROOT) -> None:
    """Raise UserError, which names the file, if something hides a module of ours. Imports none of them."""
    for name in NAMES:
        ours = root / name
        if hiding := _find_hiding(name, ours):
            advice = "rename it, or run the command in another folder"
            if {"site-packages", "dist-packages"} & set(hiding.parts):
                advice = "install charformer beside it by `pip install .` without -e, or in a virtual environment alone"
            raise UserError(f"{hiding} hides charformer's own {ours}; {advice}")


def _find_hiding(name: str, ours: Path) -> Path | None:
    """Return the file or folder that Python would import instead of ours in ``ours``; None if there is none."""
    spec = find_spec(name)
    if spec is None:
        return None
    locations = [Path(location).resolve() for location in spec.submodule_search_locations or ()]
    if ours.resolve() not in locations:
        return Path(spec.origin) if spec.origin else locations[0]
    modules = {path.stem for path in ours.iterdir()} - {"__init__", "__pycache__"}
    for location in locations[: locations.index(ours.resolve())]:
        for path in sorted(location.iterdir()):
            if path.stem in modules and path.suffix in ("", ".py"):
                return path
    return None
