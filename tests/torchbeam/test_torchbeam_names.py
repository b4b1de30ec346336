"""`import torchbeam`: the public names, what importing them costs, and folders of users that hide our packages."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from deadlines import WAIT_SECONDS

import torchbeam

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd, timeout=WAIT_SECONDS
    )


def test_importing_it_imports_neither_torch_nor_beam(tmp_path: Path) -> None:
    code = "import sys, torchbeam; dir(torchbeam); print(sorted({each.split('.')[0] for each in sys.modules}))"
    modules = ast.literal_eval(python("-c", code, cwd=tmp_path).stdout)
    assert "torchbeam" in modules
    assert not {"torch", "apache_beam", "pyarrow", "numpy", "pydantic", "handlers"} & set(modules)


def test_every_name_is_there_and_listed() -> None:
    assert torchbeam.__all__ == sorted(torchbeam.__all__)
    assert set(torchbeam.__all__) == set(torchbeam._HOMES) <= set(dir(torchbeam))
    for name in torchbeam.__all__:
        assert getattr(torchbeam, name) is getattr(importlib.import_module(torchbeam._HOMES[name]), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = torchbeam.nothing


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "torchbeam" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == torchbeam._HOMES
    assert (ROOT / "torchbeam" / "py.typed").exists()


def test_names_of_the_older_packages_are_the_same_objects() -> None:
    import handlers
    import transforms

    for package in (handlers, transforms):
        for name in set(package.__all__) & set(torchbeam.__all__):
            assert getattr(package, name) is getattr(torchbeam, name)


def test_the_module_is_the_console_script(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["torchbeam"] == "torchbeam.__main__:start"
    for arguments, code in ((["--help"], 0), ([], 2), (["nothing"], 2), (["score"], 2)):
        done = python("-m", "torchbeam", *arguments, cwd=tmp_path)
        assert done.returncode == code, done.stderr
    helped = python("-m", "torchbeam", "--help", cwd=tmp_path)
    assert "usage: torchbeam COMMAND" in helped.stdout


NAMES = ("handlers", "transforms", "pipelines")


def shadow(folder: Path, name: str, kind: str) -> Path:
    """A package or module of the user's own, called like one of ours."""
    hiding = folder / name if kind == "package" else folder / f"{name}.py"
    file = hiding / "__init__.py" if kind == "package" else hiding
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("MINE = True\n")
    return hiding


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_package_that_hides_ours_is_named_in_one_line(tmp_path: Path, name: str, kind: str) -> None:
    hiding = shadow(tmp_path, name, kind)
    line = f"{hiding} shadows torchbeam's package {name}; rename it, run from another folder, or run with python -P"
    command = python("-m", "torchbeam", "score", "--help", cwd=tmp_path)
    assert (command.returncode, command.stdout) == (2, "")
    assert line in command.stderr
    assert command.stderr.count("\n") == 1
    (tmp_path / "script.py").write_text("import torchbeam\nprint('imported')\ntorchbeam.ModelDir\n")
    script = python("script.py", cwd=tmp_path)
    assert script.stdout == "imported\n"
    last = script.stderr.splitlines()[-1]
    assert last.startswith("ImportError: the ")
    assert line in last


def test_what_works_beside_such_a_package(tmp_path: Path) -> None:
    shadow(tmp_path, "handlers", "package")
    safe = python("-P", "-m", "torchbeam", "score", "--help", cwd=tmp_path)
    assert safe.returncode == 0, safe.stderr
    (tmp_path / "bin").mkdir()  # a console script has its own folder on the path, not the working directory
    console = tmp_path / "bin" / "torchbeam"
    console.write_text("from torchbeam.__main__ import start\nstart()\n")
    done = python(str(console), "score", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--input" in done.stdout


def test_a_package_of_theirs_that_is_imported_already(tmp_path: Path) -> None:
    shadow(tmp_path, "transforms", "package")
    done = python("-c", "import transforms, torchbeam; from torchbeam import Score", cwd=tmp_path)
    assert f"the folder {tmp_path / 'transforms'} shadows" in done.stderr.splitlines()[-1]


def test_a_folder_without_modules_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "handlers").mkdir()
    done = python("-c", "from torchbeam import UsageError; print(UsageError.__module__)", cwd=tmp_path)
    assert done.stdout == "handlers.errors\n", done.stderr
