"""Names of users' functions: found, or refused in one line."""

import shutil
import sys
from pathlib import Path

import pytest

from handlers.errors import UsageError
from handlers.functions import add_to_path, import_function


def test_functions_classes_and_their_attributes() -> None:
    assert import_function("os.path:join", "loader")("a", "b") == "a/b"
    assert import_function("pathlib:Path.cwd", "loader")() == Path.cwd()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere:f", 'no module named "nowhere"'),
        ("nowhere.deeper:f", 'no module named "nowhere"'),
        ("os:nothing", 'os has no "nothing"'),
        ("os.path:join.nothing", "has no"),
        ("os:sep", "is not a function or class"),
    ],
)
def test_what_is_not_there(name: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        import_function(name, "preprocess")
    assert str(error.value).startswith(f'preprocess "{name}"')
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import missing_dependency", 'no module named "missing_dependency"'),
        ("def f(:", "SyntaxError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("from os import nothing_like_it", "ImportError"),
        ("import sys; sys.exit(4)", "SystemExit"),
    ],
)
def test_modules_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    name = f"broken_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path])
    add_to_path(tmp_path)
    with pytest.raises(UsageError) as error:
        import_function(f"{name}:f", "postprocess")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_added_once_and_only_if_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    add_to_path(tmp_path)
    add_to_path(tmp_path)
    add_to_path(tmp_path / "missing")
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1
    assert str(tmp_path / "missing") not in sys.path


def test_a_module_of_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported stays: the same module may be there twice, another one of its name may not."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for folder, value in (("one", 1), ("same", 1), ("two", 2)):
        (tmp_path / folder / "twofold").mkdir(parents=True)
        (tmp_path / folder / "twofold" / "__init__.py").write_text("")
        (tmp_path / folder / "twofold" / "rows.py").write_text(f"def f(): return {value}")
    add_to_path(tmp_path / "one")
    assert import_function("twofold.rows:f", "loader")() == 1
    add_to_path(tmp_path / "same")
    with pytest.raises(UsageError, match=r'module "twofold.rows" of .*two is imported already .* from .*one'):
        add_to_path(tmp_path / "two")


def test_a_module_that_was_changed_since_it_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder, copy = tmp_path / "changed", tmp_path / "copy"
    for each in (folder, copy):
        each.mkdir()
        (each / "changing_rows.py").write_text("def f(): return 1")
    add_to_path(folder)
    assert import_function("changing_rows:f", "loader")() == 1
    add_to_path(folder)
    (folder / "changing_rows.py").write_text("def f(): return 2")
    with pytest.raises(UsageError, match=r'"changing_rows" of .* with other contents, .*start a new process'):
        add_to_path(folder)
    shutil.rmtree(folder)
    add_to_path(copy)  # what was imported is known, though it is gone
