"""The rules between the rooms, read from the source: who imports whom, where all of it lies, how long a room may be."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
"""Package → folder, for the packages right under ``caravela`` and itself."""

# Room → the other rooms it may import. `caravela.errors` is everybody's. "" is the face.
ARROWS: dict[str, set[str]] = {
    "flows": set(),
    "protocol": set(),
    "worker": {"flows", "protocol"},
    "supervisor": {"flows", "protocol", "supervisor.engines"},
    "supervisor.engines": {"flows", "protocol", "supervisor", "worker"},
    "testing": {"flows", "protocol", "supervisor", "supervisor.engines"},
    "cli": {"flows", "protocol", "supervisor", "supervisor.engines"},
    "": {"flows", "protocol", "worker", "supervisor", "supervisor.engines", "testing", "cli"},
}
ERRORS = "caravela.errors"
LONGEST = 400  # lines


def folder_of(package: str) -> Path:
    """Where setuptools takes a package from: its own entry, or its parent's."""
    if package in FOLDERS:
        return ROOT / FOLDERS[package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent) / name


@cache
def modules() -> dict[str, Path]:
    """Every module of every listed package, by its import name."""
    found = {}
    for package in SETUPTOOLS["packages"]:
        for file in sorted(folder_of(package).glob("*.py")):
            found[package if file.stem == "__init__" else f"{package}.{file.stem}"] = file
    return found


def imports(module: str, *, at_runtime: bool = False) -> Iterator[str]:
    """The modules of ours that a module names in its imports; ``at_runtime``: without those that are for types only."""
    path = modules()[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(), str(path))
    skipped = {inner for node in ast.walk(tree) if at_runtime and is_for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        match node:
            case _ if node in skipped:
                continue
            case ast.Import(names):
                named = [alias.name for alias in names]
            case ast.ImportFrom(origin, names, level):
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - level + 1], *filter(None, [origin])]) if level else str(origin)
                named = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in names]
            case _:
                continue
        yield from (name for name in named if name.partition(".")[0] == "caravela")


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room_of(module: str) -> str:
    """The key in ``ARROWS`` that fits best: ``supervisor.engines`` before ``supervisor``; ``""`` for the face."""
    name = module.removeprefix("caravela").lstrip(".")
    fitting = [room for room in ARROWS if room and (name == room or name.startswith(f"{room}."))]
    return max(fitting, key=len, default="")


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_arrows(module: str) -> None:
    room = room_of(module)
    for imported in imports(module):
        assert imported in modules(), f"{module} imports {imported}, which is not there"
        if imported != ERRORS and room_of(imported) != room:
            assert room_of(imported) in ARROWS[room], f"{module} must not import {imported}"


def test_the_rule_itself_refuses_and_allows() -> None:
    assert "caravela.supervisor.engines" in modules()
    assert room_of("caravela.supervisor.engines.base") == "supervisor.engines"
    assert room_of("caravela.supervisor") == "supervisor"
    assert room_of(ERRORS) == room_of("caravela") == ""
    assert {room_of(module) for module in modules()} == ARROWS.keys()


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: set(imports(module, at_runtime=True)) - {module} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_every_package_is_listed_for_setuptools() -> None:
    listed = {folder_of(package) for package in SETUPTOOLS["packages"]}
    for name in FOLDERS.values():
        for folder in (ROOT / name).rglob("*"):
            if folder.suffix == ".py":
                assert folder.parent in listed, f"{folder.parent} is missing in pyproject.toml"
    for folder in listed:
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"
    assert set(FOLDERS) <= set(SETUPTOOLS["packages"])


def test_type_checkers_find_every_module_through_the_links() -> None:
    links = ROOT / "typings" / "caravela"
    for link in links.iterdir():
        assert link.is_symlink(), f"{link} is a copy"
        assert not link.readlink().is_absolute(), f"{link} leads out of the repository"
        assert link.exists(), f"{link} leads nowhere"
    for module, path in modules().items():
        seen = links.joinpath(*module.split(".")[1:], "__init__.py" if path.stem == "__init__" else "")
        seen = seen if path.stem == "__init__" else seen.with_suffix(".py")
        assert seen.exists(), f"{module} has no link in typings/caravela"
        assert seen.samefile(path), f"{seen} is not {path}"


def test_no_folder_hides_the_installed_package() -> None:
    assert not (ROOT / "caravela").exists()


@pytest.mark.parametrize("module", modules())
def test_rooms_stay_small(module: str) -> None:
    lines = len(modules()[module].read_text().splitlines())
    assert lines <= LONGEST, f"{modules()[module]} has {lines} lines; one idea a file"


@pytest.mark.parametrize("module", modules())
def test_what_is_silenced_says_why(module: str) -> None:
    silenced = re.compile(r"#\s*(?:type:\s*ignore|pyright:\s*ignore|noqa|pragma:)([^#\n]*)(#.*\S)?")
    for number, line in enumerate(modules()[module].read_text().splitlines(), 1):
        found = silenced.search(line)
        if not found:
            continue
        assert re.search(r"[\[:]\s*\w", found[1]), f"{modules()[module]}:{number} silences everything: name the rule"
        assert found[2], f"{modules()[module]}:{number} does not say why: add `# reason`"
