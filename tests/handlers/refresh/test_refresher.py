"""A model that is exchanged while rows are scored: taken, refused, released. Looks are made by hand, or by the thread."""

import gc
import logging
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deadlines import WAIT_SECONDS
from small_models import Linear

from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.predictor import Predictor
from handlers.refresh.refresher import Refresher, close_all
from handlers.refresh.watch import ModelWatch, Refresh

INPUTS = [{"name": "x", "columns": ["a", "b"]}]
NEVER = 86_400.0  # seconds: the thread does nothing of itself


class Loaded:
    def __init__(self, model: ModelDir) -> None:
        self.version = model.version
        self.predictor = Predictor(model.load())


def load(model: ModelDir, running: Loaded | None) -> Loaded:
    if running is not None and model.spec.name == "refused":
        raise UsageError("its output columns are not those of the run")
    return Loaded(model)


@pytest.fixture
def versions(tmp_path: Path) -> Callable[..., ModelDir]:
    def write(version: int, bias: float = 0.5, **fields: object) -> ModelDir:
        module = Linear()
        torch.nn.init.constant_(module.layer.bias, bias)
        return ModelDir.save(module, tmp_path / f"models/{version}", inputs=INPUTS, **fields)

    return write


def begin(first: ModelDir, every: float = NEVER) -> Refresher[Loaded]:
    return Refresher(Refresh(ModelWatch(f"{Path(first.path).parent}/*"), every), first, load)


def thread_of(refresher: Refresher[Loaded]) -> threading.Thread:
    found = refresher._close.peek()
    assert found is not None
    thread: threading.Thread = found[2][1]
    return thread


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_newer_model_is_taken_when_two_looks_saw_it(versions: Callable[..., ModelDir]) -> None:
    first = versions(1)
    refresher = begin(first)
    assert not refresher.look()
    second = versions(2, 3.0)
    assert refresher.look()
    assert refresher.current.version == first.version
    assert refresher.look()
    assert refresher.current.version == refresher.version == second.version
    assert not refresher.look()
    assert refresher.take_counts() == {"models_refreshed": 1}
    assert not refresher.take_counts()
    shutil.rmtree(second.path)  # a version that is withdrawn: the one before it is the newest again
    assert refresher.look()
    assert refresher.look()
    assert refresher.current.version == first.version


def test_the_same_model_under_another_name_is_not_loaded_again(versions: Callable[..., ModelDir]) -> None:
    first = versions(1)
    refresher = begin(first)
    loaded = refresher.current
    shutil.copytree(first.path, Path(first.path).parent / "2")
    assert refresher.look()
    refresher.look()
    assert refresher.current is loaded
    assert not refresher.take_counts()


def test_a_directory_that_is_being_copied_is_left_alone(
    versions: Callable[..., ModelDir], caplog: pytest.LogCaptureFixture
) -> None:
    first = versions(1)
    refresher = begin(first)
    source = Path(versions(20, 3.0).path)
    target = source.rename(source.parents[1] / "source").parent / "models/2"
    source = source.parents[1] / "source"
    weights = (source / "weights.safetensors").read_bytes()
    target.mkdir()
    shutil.copy(source / "model.yaml", target)
    for size in (10, 20, len(weights) - 1):  # every look sees other files
        (target / "weights.safetensors").write_bytes(weights[:size])
        assert refresher.look()
    assert not warnings(caplog)
    for _ in range(3):  # it stays like that
        refresher.look()
    (line,) = warnings(caplog)
    assert f"the model at {target} is refused: " in line
    assert "the weights were changed or damaged" in line
    assert line.endswith(f"version {first.version} goes on")
    assert refresher.take_counts() == {"models_refused": 1}
    (target / "weights.safetensors").write_bytes(weights)
    refresher.look()
    refresher.look()
    assert refresher.current.version == ModelDir(target).version != first.version
    assert refresher.take_counts() == {"models_refreshed": 1}


@pytest.mark.parametrize("kind", ["refused", "no yaml", "raises"])
def test_a_model_is_refused_once(
    versions: Callable[..., ModelDir], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    first = versions(1)
    refresher = begin(first)
    second = Path(versions(2, 3.0, name="refused" if kind == "refused" else "model").path)
    if kind == "no yaml":
        (second / "model.yaml").write_text("[")
    elif kind == "raises":
        (second / "model.yaml").write_text((second / "model.yaml").read_text() + "arguments: {classes: 7}\n")
    for _ in range(5):
        refresher.look()
    expected = {"refused": "columns are not those", "no yaml": "is not YAML", "raises": "does not fit"}[kind]
    (line,) = warnings(caplog)
    assert expected in line
    assert "\n" not in line
    assert refresher.take_counts() == {"models_refused": 1}
    assert refresher.current.version == first.version
    third = versions(3, 4.0)
    refresher.look()
    refresher.look()
    assert refresher.current.version == third.version


def test_a_location_that_is_gone_is_reported_once(
    versions: Callable[..., ModelDir], caplog: pytest.LogCaptureFixture
) -> None:
    first = versions(1)
    refresher = begin(first)
    folder = Path(first.path)
    away = folder.rename(folder.parents[1] / "away")
    for _ in range(3):
        assert not refresher.look()
    (line,) = warnings(caplog)
    assert line.startswith("no newer model can be looked for: no directory with a model.yaml matches")
    assert refresher.take_counts() == {"model_lookups_failed": 3}
    away.rename(folder)
    with caplog.at_level(logging.INFO):
        refresher.look()
    assert caplog.records[-1].getMessage().endswith("can be read again")


def test_a_worker_that_starts_late_takes_the_newest(versions: Callable[..., ModelDir]) -> None:
    first = versions(1)
    second = versions(2, 3.0)
    shutil.rmtree(first.path)
    assert begin(first).current.version == second.version


def test_a_worker_that_starts_late_falls_back_to_the_first(
    versions: Callable[..., ModelDir], caplog: pytest.LogCaptureFixture
) -> None:
    first = versions(1)
    second = Path(versions(2, 3.0).path)
    (second / "weights.safetensors").write_bytes(b"")
    refresher = begin(first)
    assert refresher.current.version == first.version
    assert refresher.take_counts() == {"models_refused": 1}
    refresher.look()
    assert len(warnings(caplog)) == 1
    shutil.rmtree(first.path)
    with pytest.raises(UsageError, match="is not on this worker"):
        begin(first)


def test_secrets_are_not_logged(
    versions: Callable[..., ModelDir], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresher = begin(versions(1))

    def fails(*_: object) -> None:
        raise OSError("GET https://user:hunter22secret@store/?sig=abcdef0123 failed")

    monkeypatch.setattr("handlers.refresh.watch.ModelWatch.find", fails)
    refresher.look()
    (line,) = warnings(caplog)
    assert "OSError: GET https://***@store/?sig=*** failed" in line


def test_the_old_model_is_released(versions: Callable[..., ModelDir]) -> None:
    first = versions(1)
    refresher = begin(first)
    module = weakref.ref(refresher.current.predictor.module)
    gc.disable()
    try:
        versions(2, 3.0)
        refresher.look()
        refresher.look()
        assert module() is None
    finally:
        gc.enable()


def test_the_thread_takes_a_newer_model_and_ends_with_its_owner(versions: Callable[..., ModelDir]) -> None:
    first = versions(1)
    taken = threading.Event()

    def tell(model: ModelDir, running: Loaded | None) -> Loaded:
        if running is not None:
            taken.set()
        return Loaded(model)

    refresher = Refresher(Refresh(ModelWatch(f"{Path(first.path).parent}/*"), 0.01), first, tell)
    thread = thread_of(refresher)
    second = versions(2, 3.0)
    assert taken.wait(WAIT_SECONDS)
    with refresher._looking:
        assert refresher.version == second.version
    del refresher
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


def test_close_ends_the_thread(versions: Callable[..., ModelDir]) -> None:
    refresher, other = begin(versions(1)), begin(versions(2))
    threads = [thread_of(refresher), thread_of(other)]
    refresher.close()
    assert [thread.is_alive() for thread in threads] == [False, True]
    close_all()
    assert not threads[1].is_alive()
    refresher.close()


def test_code_of_a_model_that_exits(versions: Callable[..., ModelDir], caplog: pytest.LogCaptureFixture) -> None:
    first = versions(1)

    def leave(model: ModelDir, running: Loaded | None) -> Loaded:
        if running is not None:
            raise SystemExit("bye")
        return Loaded(model)

    refresher = Refresher(Refresh(ModelWatch(f"{Path(first.path).parent}/*"), NEVER), first, leave)
    versions(2, 3.0)
    refresher.look()
    refresher.look()
    assert "is refused: SystemExit: bye" in caplog.text
    assert refresher.version == first.version
