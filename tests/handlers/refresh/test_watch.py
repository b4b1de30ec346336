"""Which model a location stands for: patterns, pointer files, names in a registry, links."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
from small_models import Linear, Save

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.trust import Trust
from handlers.refresh.watch import ModelWatch, Refresh

INPUTS = [{"name": "x", "columns": ["a", "b"]}]


def folders(parent: Path, *names: str) -> None:
    for name in names:
        (parent / name).mkdir(parents=True)
        (parent / name / "model.yaml").write_text("name: m\n")


def found(watch: ModelWatch) -> str:
    return Path(watch.find().path).name


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (["2", "10", "9"], "10"),
        (["v1.4.0", "v1.10.0", "v1.9.3"], "v1.10.0"),
        (["1.5.0", "1.5.0-rc2", "1.4.9"], "1.5.0"),
        (["1.5.0-rc1", "1.5.0-rc2", "1.4.9"], "1.5.0-rc2"),
        (["2026-09-30", "2026-11-25", "2026-11-9"], "2026-11-25"),
        (["20261125-0915", "20261125-1030", "20261124-2300"], "20261125-1030"),
        (["7", "backup", "latest", "_8", ".9"], "7"),
    ],
)
def test_the_newest_by_version(tmp_path: Path, names: list[str], newest: str) -> None:
    folders(tmp_path, *names)
    (tmp_path / "99").mkdir()  # still being copied: model.yaml comes last
    (tmp_path / "aliases.json").write_text("{}")
    assert found(ModelWatch(f"{tmp_path}/*")) == newest


def test_the_newest_by_time(tmp_path: Path) -> None:
    folders(tmp_path, "b", "7", "a")
    for seconds, name in enumerate(("7", "a", "b")):
        os.utime(tmp_path / name / "model.yaml", (seconds, seconds))
    watch = ModelWatch(f"{tmp_path}/*", newest_by="time")
    assert found(watch) == "b"
    os.utime(tmp_path / "a/model.yaml", (9, 9))
    assert found(watch) == "a"


def test_bare_files(tmp_path: Path) -> None:
    for name in ("credit-1.pt2", "3.pt2", "12.pt2", "20.txt"):
        (tmp_path / name).write_text("")
    assert found(ModelWatch(f"{tmp_path}/*.pt2")) == "12.pt2"


def test_nothing_matches(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no directory with a model.yaml matches .*/\*; put a model there"):
        ModelWatch(f"{tmp_path}/*").find()
    folders(tmp_path, "good", "better")
    with pytest.raises(UsageError, match=r'"better", whose name is no version such as 7, .* \(--newest_by=time\)'):
        ModelWatch(f"{tmp_path}/*").find()
    with pytest.raises(UsageError, match='newest_by must be version or time, not "size"'):
        ModelWatch("models/*", newest_by="size")  # type: ignore[arg-type]
    for seconds in (0, -1, float("nan"), 1e12):
        with pytest.raises(UsageError, match=r"a model is looked for every 0\.1 to"):
            Refresh(ModelWatch("models/*"), seconds)


def test_a_path_that_exists_wins_over_a_pattern(tmp_path: Path) -> None:
    folders(tmp_path, "x[1]", "x1")
    assert found(ModelWatch(f"{tmp_path}/x[1]")) == "x[1]"


@pytest.mark.parametrize("text", ["v2", "./v2\n", "{folder}/v2", "../models/v2\n\n"])
def test_a_pointer_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    models = tmp_path / "models"
    folders(models, "v1", "v2")
    (models / "CURRENT").write_text("v1")
    monkeypatch.chdir(tmp_path)
    watch = ModelWatch("models/CURRENT")
    monkeypatch.chdir("/")  # as a worker has another one
    assert watch.find().path == str(models / "v1")
    (models / "CURRENT").write_text(text.format(folder=models))
    assert watch.find().path == str(models / "v2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no path; write the path of a model directory into it, on one line"),
        (b"\n v1", "holds no path"),
        (b"v1\nv2", "holds no path"),
        (b"v1\x00", "holds no path"),
        (b"\xff\xfe", "is not text"),
        (b"v" * 5000, "neither a model nor a pointer file: it has more than 4,096 bytes"),
    ],
)
def test_pointer_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "CURRENT").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        ModelWatch(str(tmp_path / "CURRENT")).find()


def test_a_name_in_a_registry(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = tmp_path / "registry"
    for version in (1, 2):
        ModelDir.save(Linear(version + 1), registry / f"credit/{version}", inputs=INPUTS)
    aliases = registry / "credit/aliases.json"
    aliases.write_text('{"champion": {"version": 1, "previous": []}}')
    watch = pickle.loads(pickle.dumps(ModelWatch("credit@champion", registry=str(registry))))
    assert watch.find().path == str(registry / "credit/1")
    aliases.write_text('{"champion": {"version": 2, "previous": [1]}}')
    assert watch.first().registered == "credit@2"
    (tmp_path / "CURRENT").write_text("credit@1")
    monkeypatch.setenv("TORCHBEAM_REGISTRY", str(registry))
    pointer = ModelWatch(str(tmp_path / "CURRENT"))
    monkeypatch.delenv("TORCHBEAM_REGISTRY")
    assert pointer.first().registered == "credit@1"
    with pytest.raises(UsageError, match='has no alias "next"'):
        ModelWatch("credit@next", registry=str(registry)).find()


def test_a_version_that_was_changed_after_its_push_is_refused(save: Save, tmp_path: Path) -> None:
    model = save()
    folder = tmp_path / "registry/credit/1"
    shutil.copytree(model.path, folder)
    (folder / ".registry.json").write_text('{"digest": "' + "0" * 64 + '"}')
    watch = ModelWatch("credit@latest", registry=str(tmp_path / "registry"))
    with pytest.raises(UsageError, match=r"credit@1 .* was changed after it was pushed"):
        watch.first()


def test_a_directory_and_a_link_to_one(save: Save, tmp_path: Path) -> None:
    first, second = save(), save(Linear(3))
    link = tmp_path / "current"
    link.symlink_to(first.path)
    watch = ModelWatch(str(link))
    before = watch.find()
    assert before == watch.find()
    assert watch.open(before).digest == first.digest
    link.unlink()
    link.symlink_to(second.path)
    assert watch.find() != before
    assert watch.first().digest == second.digest
    before = watch.find()
    ModelDir.save(Linear(4), second.path, inputs=INPUTS)  # written anew in its place
    assert watch.find() != before
    with pytest.raises(UsageError, match="has version"):
        ModelWatch(str(link), Trust(version="0" * 12)).first()


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist; it must be a model directory"):
        ModelWatch(str(tmp_path / "nowhere")).find()
