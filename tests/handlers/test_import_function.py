"""Names of users' functions: found, or refused in one line."""

from pathlib import Path

import pytest

from handlers.errors import UsageError
from handlers.model import files
from handlers.model_code import ModelCode, import_function


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
def test_modules_that_cannot_be_imported(tmp_path: Path, code: str, reason: str) -> None:
    name = f"broken_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    inside = files.digests(tmp_path)
    modules = ModelCode.add(files.digest_of(inside), tmp_path, inside)
    with pytest.raises(UsageError) as error:
        import_function(f"{name}:f", "postprocess", modules)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_module_that_code_lacks_is_named_as_its_author_wrote_it(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "__init__.py").write_text("")
    inside = files.digests(tmp_path)
    modules = ModelCode.add(files.digest_of(inside), tmp_path, inside)
    with pytest.raises(
        UsageError, match=r'"partial.rows:f" cannot be imported: no module named "partial.rows"; put it'
    ):
        import_function("partial.rows:f", "preprocess", modules)
