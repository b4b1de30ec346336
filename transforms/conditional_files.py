"""Compare-and-swap for small text files, on local disks and in object stores.

It uses what the store offers: a generation match in `gs://`, an ETag match in `s3://`, a lock and a hard link on a local
disk. Elsewhere a file is compared and then written, which is not atomic.
"""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apache_beam.io.filesystems import FileSystems

from transforms.file_ops import exists, read_text, remove, write_text

_TIMEOUT, _RETRY_SECONDS = 20.0, 60.0  # of a request, and of one with all its repetitions
_ATTEMPTS = 20


class ChangedError(Exception):
    """The file changed since it was last read: another process wrote, created or removed it."""


@dataclass(frozen=True)
class Seen:
    """The content of a file when it was read; `version` is the generation or ETag in the store."""

    text: str
    version: str = ""


class ConditionalFile(ABC):
    """A file at `path`.

    Attributes:
        path: local or remote.
        atomic: whether one of two concurrent writes always fails. For an S3 store without conditional writes this becomes
            false with the first write.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.atomic = True

    @abstractmethod
    def read(self) -> Seen | None:
        """Reads the file; None if there is no file."""

    @abstractmethod
    def write(self, text: str, seen: Seen | None) -> None:
        """Writes `text` if the file still equals `seen`, or does not exist for None; raises `ChangedError` otherwise."""

    @abstractmethod
    def remove(self, seen: Seen) -> None:
        """Removes the file if it still equals `seen`; raises `ChangedError` otherwise."""

    def _expect(self, seen: Seen | None) -> None:
        found = self.read()
        if (found and found.text) != (seen and seen.text):
            raise ChangedError(self.path)

    def _expect_own(self, text: str) -> None:
        """Accepts the write of a retried request whose first response was lost."""
        found = self.read()
        if found is None or found.text != text:
            raise ChangedError(self.path)


def conditional_file(path: str) -> ConditionalFile:
    """The file at `path`, with the operations of its file system."""
    kinds: dict[str | None, type[ConditionalFile]] = {None: _LocalFile, "gs": _GcsFile, "s3": _S3File}
    return kinds.get(FileSystems.get_scheme(path), _OtherFile)(path)


class _LocalFile(ConditionalFile):
    def read(self) -> Seen | None:
        try:
            return Seen(Path(self.path).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, text: str, seen: Seen | None) -> None:
        target = Path(self.path)
        whole = target.with_name(f"{target.name}-{uuid.uuid4().hex[:12]}")
        try:
            _write_with_folder(whole, text)
            if seen is None:
                _link(whole, target)
                return
            with self._locked(seen):
                whole.replace(target)
        finally:
            whole.unlink(missing_ok=True)

    def remove(self, seen: Seen) -> None:
        with self._locked(seen):
            Path(self.path).unlink(missing_ok=True)

    @contextmanager
    def _locked(self, seen: Seen) -> Iterator[None]:
        """Locks the file. The file itself is locked, so that no lock file is left behind."""
        try:
            with Path(self.path).open() as file:
                with suppress(ImportError, OSError):  # Windows, or no locks: compared, but not atomic
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX)
                current = os.path.samestat(os.fstat(file.fileno()), Path(self.path).stat())
                if not current or file.read() != seen.text:
                    raise ChangedError(self.path)
                yield
        except FileNotFoundError:
            raise ChangedError(self.path) from None


def _write_with_folder(file: Path, text: str) -> None:
    for attempt in range(_ATTEMPTS):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.write_text(text)
            return
        except FileNotFoundError:  # another run created the folder, failed, and removed it in between
            if attempt == _ATTEMPTS - 1:
                raise


def _link(whole: Path, target: Path) -> None:
    """Gives a complete file its name, unless the name exists."""
    try:
        os.link(whole, target)
    except FileExistsError:
        raise ChangedError(str(target)) from None
    except OSError:  # a file system without hard links
        try:
            with target.open("x") as file:
                file.write(whole.read_text())
        except FileExistsError:
            raise ChangedError(str(target)) from None


class _GcsFile(ConditionalFile):
    def __init__(self, path: str) -> None:
        from apache_beam.io.gcp import gcsio
        from google.cloud.storage.retry import DEFAULT_RETRY

        super().__init__(path)
        options = FileSystems.get_filesystem(path)._pipeline_options  # type: ignore[attr-defined]
        bucket, self._name = gcsio.parse_gcs_path(path)
        self._bucket: Any = gcsio.GcsIO(pipeline_options=options).client.bucket(bucket)
        # A conditional request is safe to retry.
        self._limits = {"timeout": _TIMEOUT, "retry": DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)}

    def read(self) -> Seen | None:
        from google.api_core.exceptions import NotFound

        blob = self._bucket.blob(self._name)
        try:
            content = blob.download_as_bytes(**self._limits)
        except NotFound:
            return None
        return Seen(content.decode(), str(blob.generation))

    def write(self, text: str, seen: Seen | None) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        blob = self._bucket.blob(self._name)
        generation = int(seen.version) if seen else 0  # 0: no file
        try:
            blob.upload_from_string(text, "application/json", if_generation_match=generation, **self._limits)
        except (NotFound, PreconditionFailed):
            self._expect_own(text)

    def remove(self, seen: Seen) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        self._expect(seen)
        try:
            self._bucket.blob(self._name).delete(if_generation_match=int(seen.version), **self._limits)
        except (NotFound, PreconditionFailed):
            if self.read() is not None:
                raise ChangedError(self.path) from None


class _S3File(ConditionalFile):
    def __init__(self, path: str) -> None:
        from apache_beam.io.aws import s3io

        super().__init__(path)
        options = FileSystems.get_filesystem(path)._options  # type: ignore[attr-defined]
        self._client: Any = s3io.S3IO(options=options).client.client
        bucket, key = s3io.parse_s3_path(path)
        self._object = {"Bucket": bucket, "Key": key}

    def read(self) -> Seen | None:
        try:
            found = self._client.get_object(**self._object)
        except self._client.exceptions.NoSuchKey:
            return None
        return Seen(found["Body"].read().decode(), found["ETag"])

    def write(self, text: str, seen: Seen | None) -> None:
        from botocore.exceptions import ClientError, ParamValidationError

        content = {**self._object, "Body": text.encode(), "ContentType": "application/json"}
        condition = {"IfMatch": seen.version} if seen else {"IfNoneMatch": "*"}
        if self.atomic:
            try:
                self._client.put_object(**content, **condition)
                return
            except ParamValidationError:  # boto3 is too old for conditional writes
                self.atomic = False
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                if code in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                    self._expect_own(text)
                    return
                if code != "NotImplemented":
                    raise
                self.atomic = False
        self._expect(seen)
        self._client.put_object(**content)
        self._expect_own(text)

    def remove(self, seen: Seen) -> None:
        # Not conditional: fewer stores support that than conditional writes, and claims rarely change owners.
        self._expect(seen)
        self._client.delete_object(**self._object)


class _OtherFile(ConditionalFile):
    """A file of another file system of Beam, or of a file system that the user registered."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.atomic = False

    def read(self) -> Seen | None:
        return Seen(read_text(self.path)) if exists(self.path) else None

    def write(self, text: str, seen: Seen | None) -> None:
        self._expect(seen)
        write_text(self.path, text)
        self._expect_own(text)

    def remove(self, seen: Seen) -> None:
        self._expect(seen)
        remove([self.path])
