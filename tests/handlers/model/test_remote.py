"""Models behind a scheme, on a filesystem of Beam's that is a folder of this machine: `tiny://models/m`."""

import io
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_models
import torch
from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem
from small_models import Save

from handlers.errors import UsageError
from handlers.model import remote
from handlers.model.directory import ModelDir
from handlers.model.files import TAG, TAG_TEXT
from handlers.predict.predictor import Predictor

X = torch.tensor([[0.0, 1.0], [2.0, -1.0]])


class TinyFileSystem(FileSystem):
    """As much of a filesystem as reading takes; Beam finds it by its scheme. It has no folders, as object stores have none."""

    root = Path("/nowhere")
    opened: list[str] = []  # noqa: RUF012 - counts over all instances

    @classmethod
    def scheme(cls) -> str:
        return "tiny"

    def _local(self, url: str) -> Path:
        return self.root / url.removeprefix("tiny://")

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        prefix = str(self._local(dir_or_prefix))
        for file in sorted(self.root.rglob("*")):
            if file.is_file() and str(file).startswith(prefix):
                yield FileMetadata(f"tiny://{file.relative_to(self.root).as_posix()}", file.stat().st_size)

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.AUTO) -> io.BytesIO:
        assert compression_type == CompressionTypes.UNCOMPRESSED, "weights named .gz are not to be unpacked"
        self.opened.append(path)
        return io.BytesIO(self._local(path).read_bytes())

    def exists(self, path: str) -> bool:
        return self._local(path).is_file()

    def _unused(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError

    mkdirs = create = copy = rename = size = last_updated = checksum = metadata = delete = _unused


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder behind tiny://, and a cache of its own."""
    monkeypatch.setattr(TinyFileSystem, "root", tmp_path / "bucket")
    monkeypatch.setattr(TinyFileSystem, "opened", [])
    monkeypatch.setattr(remote.tempfile, "gettempdir", lambda: str(tmp_path / "cache"))
    (tmp_path / "bucket" / "models").mkdir(parents=True)
    return tmp_path / "bucket"


@pytest.fixture
def url(bucket: Path, save: Save) -> str:
    source = save(name="m")
    (Path(source.path) / "code").mkdir()
    (Path(source.path) / "code" / "note.py").write_text("")
    shutil.copytree(source.path, bucket / "models" / "m")
    return "tiny://models/m"


def test_a_remote_model_answers_as_the_local_one(url: str, bucket: Path) -> None:
    model = ModelDir(url + "/")
    assert model.version == ModelDir(bucket / "models" / "m").version
    worker = pickle.loads(pickle.dumps(model))
    expected = small_models.Linear()(X)
    assert torch.allclose(Predictor(worker.load()).predict({"x": X}).tensors["output"], expected, atol=1e-6)


def test_workers_of_one_machine_copy_it_once(url: str) -> None:
    model = ModelDir(url)
    copied = len(TinyFileSystem.opened)
    assert copied == 3
    for _ in range(3):
        assert pickle.loads(pickle.dumps(model)).local().is_dir()
    assert len(TinyFileSystem.opened) == copied


def test_another_machine_copies_it_when_it_is_needed(url: str, tmp_path: Path) -> None:
    model = pickle.loads(pickle.dumps(ModelDir(url)))
    shutil.rmtree(tmp_path / "cache")
    assert model.local().is_dir()
    assert model.load()


def test_a_damaged_copy_is_replaced(url: str) -> None:
    model = ModelDir(url)
    (model.local() / "weights.safetensors").write_bytes(b"")
    assert model.load()


def test_a_model_that_changed_after_the_run_began(url: str, bucket: Path, tmp_path: Path) -> None:
    model = ModelDir(url)
    (bucket / "models" / "m" / "more.txt").write_text("x")
    assert model.local().is_dir(), "the copy is the version that was opened"
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UsageError, match="changed after the run began"):
        model.local()
    assert ModelDir(url).version != model.version


def test_a_bare_file(bucket: Path) -> None:
    torch.jit.script(small_models.Linear()).save(str(bucket / "models" / "m.pt"))
    model = ModelDir("tiny://models/m.pt")
    assert model.spec.format == "torchscript"
    assert model.load().inputs[0].name == "x"


def test_nothing_there(bucket: Path) -> None:
    with pytest.raises(UsageError, match="--model tiny://models/none does not exist"):
        ModelDir("tiny://models/none")


def test_a_name_that_begins_alike(url: str, bucket: Path) -> None:
    shutil.copytree(bucket / "models" / "m", bucket / "models" / "m2")
    assert {path.name for path in ModelDir(url).local().parent.iterdir()} == {"m"}


def test_an_unknown_scheme() -> None:
    with pytest.raises(UsageError, match="model nope://m cannot be read"):
        ModelDir("nope://m")


def test_names_that_would_leave_the_folder(bucket: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store may hold any name, `..` among them."""
    listed = TinyFileSystem._list

    def with_odd_name(self: TinyFileSystem, prefix: str) -> Iterator[FileMetadata]:
        yield from listed(self, prefix)
        yield FileMetadata("tiny://models/m/../../escaped.txt", 1)

    (bucket / "escaped.txt").write_text("x")
    monkeypatch.setattr(TinyFileSystem, "_list", with_odd_name)
    with pytest.raises(UsageError, match=r"escaped.txt"):
        ModelDir(url)


def test_the_work_of_a_training_stays_where_it_is(url: str, bucket: Path) -> None:
    folder = bucket / "models" / "m"
    version = ModelDir(folder).version
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / TAG).write_text(TAG_TEXT)
    (folder / "checkpoints/last.ckpt").write_bytes(b"state")
    assert ModelDir(url).version == version
    assert len(TinyFileSystem.opened) == 3  # model.yaml, the weights and the code
