"""`TorchScore`: scores Beam rows, for pipelines of Beam YAML and of other languages."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NoReturn, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection, Row
from apache_beam.transforms.window import BoundedWindow
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import schema_from_element_type
from apache_beam.utils.windowed_value import WindowedValue

from handlers.batching import Batching
from handlers.columnar.chunks import DEAD_LETTER, with_provenance, with_refusals
from handlers.encode.columns import matching
from handlers.errors import RowsFailedError, UsageError
from handlers.failures import RowFailures
from handlers.isolation import isolate
from handlers.model.directory import ModelDir
from handlers.model.trust import Trust
from handlers.predict.placement import Placement
from transforms.inference.score import Score
from transforms.rows.fields import Field, Rows, fields_of, nullable
from transforms.sources.blocks import Split, misfit
from transforms.sources.digits import dumps

GOOD = "good"
# `Score` joins these; so many rows, or about so many bytes, are held as Python objects.
_CHUNK_ROWS = 1000
_CHUNK_BYTES = 16 << 20
_ROWS = Split("its bundle", "rows")  # how messages name the origin of a row
_REASONS = ("stage", "type", "model_version", "raw")


@dataclass(eq=False)
class TorchScore(beam.PTransform[Any, Any]):
    """Scores rows with a schema: the predictions, dead letters and reasons are those of `Score`.

    In Beam YAML it is `type: TorchScore`, with the provider that docs/yaml.md shows; from Java it is
    `PythonExternalTransform.from("torchbeam.TorchScore")`. All attributes can be given as YAML has them.

    Takes rows: `beam.Row`, named tuples, or whatever else Beam has a schema for. Gives rows of the copied columns, the
    columns of the task (`predicted_class`, `confidence`, …) and `model_version`. They have the timestamp of the end of
    their window, as those of `RunInference` have.

    With `error_handling` it gives a dictionary of `good` and of the named output, whose rows have `element`, the row as it
    came in, `msg`, `stage` and `type`, which say why it was not scored, `model_version`, and `raw`, the row in JSON where
    one of its values did not fit its field, which then is null in `element`. Without it such a row fails the pipeline.

    Attributes:
        model: a model directory, its path, a bare `.pt2` or TorchScript file, or a name in the registry, such as
            `credit@champion`, which is resolved once, when the pipeline is built.
        columns: names and patterns of the fields that are copied into the output.
        probabilities: whether a classification also gives the probability of every class.
        preprocess: functions on rows, as `module:function`, after those of the model directory.
        postprocess: functions on predictions, likewise.
        registry: the folder of the registry; TORCHBEAM_REGISTRY by default.
        model_version: the only version that is accepted, 12 to 64 hexadecimal digits.
        no_model_code: whether a model directory with code of its own is refused.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `float32`, `bfloat16` or `float16`.
        batch_size: rows of a call of the model; None chooses by the bytes of a row.
        error_handling: `{"output": name}`, as in Beam YAML.

    Raises:
        UsageError: for invalid settings, an invalid model, or rows that have no schema or do not match the model.
    """

    model: ModelDir | str | os.PathLike[str]
    columns: Sequence[str] = ("*",)
    probabilities: bool = False
    preprocess: Sequence[str] = ()
    postprocess: Sequence[str] = ()
    registry: str | None = None
    model_version: str | None = None
    no_model_code: bool = False
    device: str = "auto"
    precision: str = "float32"
    batch_size: int | None = None
    error_handling: Any = None

    def __post_init__(self) -> None:
        super().__init__()
        for name in ("probabilities", "no_model_code"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.batch_size is not None and not isinstance(self.batch_size, Integral):
            raise UsageError(f"batch_size must be a number of rows, not {self.batch_size!r}")
        if isinstance(self.model, ModelDir):
            if self.registry is not None or self.model_version is not None or self.no_model_code:
                raise UsageError("registry, model_version and no_model_code go with a path or name; this model is open")
            self._model = self.model
        elif not isinstance(self.model, str | os.PathLike):
            raise UsageError(f"model must be a path or a name in the registry, not {self.model!r}")
        else:
            trust = Trust(version=self.model_version, code=not self.no_model_code)
            self._model = ModelDir(self.model, trust, self.registry)
        self._placement = Placement(self.device, self.precision)  # type: ignore[arg-type]
        self._batching = Batching(batch_size=None if self.batch_size is None else int(self.batch_size))
        self._errors = _output_of(self.error_handling)

    def expand(self, rows: PCollection[Any]) -> PCollection[Any] | dict[str, PCollection[Any]]:
        """Rows → chunks → `Score` → rows."""
        try:
            schema = schema_from_element_type(cast("Any", rows.element_type))
        except TypeError:
            raise UsageError(
                f"TorchScore takes rows with a schema, not elements of type {rows.element_type}; make them beam.Row, or "
                "in Beam YAML give them fields with MapToFields"
            ) from None
        fields = fields_of(schema, lambda names: matching(tuple(self._model.spec.numeric_columns), names))
        score = Score(
            self._model,
            pa.schema([(field.name, field.kind) for field in fields]),
            columns=self.columns,
            preprocess=self.preprocess,
            postprocess=self.postprocess,
            probabilities=self.probabilities,
            placement=self._placement,
            batching=self._batching,
            source="rows",
        )
        good = Rows(score.predictions_schema, fields)
        scored = rows | "Chunks" >> beam.ParDo(_ToChunks(fields)) | "Score" >> score
        predictions: PCollection[Any] = scored.predictions | "Rows" >> beam.FlatMap(good.values).with_output_types(
            good.element_type
        )
        if not self._errors:
            _ = scored.dead_letters | "Fail" >> beam.Map(_fail)
            return predictions
        letters = _Letters(fields)
        errors = scored.dead_letters | "Errors" >> beam.FlatMap(letters.values).with_output_types(letters.element_type)
        return {GOOD: predictions, self._errors: errors}


def _output_of(error_handling: Any) -> str:
    """The name of the output of errors; empty for none."""
    if error_handling is None:
        return ""
    if not isinstance(error_handling, Mapping):  # as a row from another language
        error_handling = error_handling._asdict() if hasattr(error_handling, "_asdict") else {"": error_handling}
    given = {name: value for name, value in error_handling.items() if not name.startswith("__")}  # lines of YAML
    name = given.get("output")
    if set(given) != {"output"} or not isinstance(name, str) or name in ("", GOOD):
        raise UsageError(f'error_handling must be {{output: NAME}} with a name that is not "{GOOD}", not {given}')
    return name


@beam.typehints.with_output_types(pa.RecordBatch)
class _ToChunks(beam.DoFn):
    """Makes chunks of the rows of a bundle, by window; it holds no rows between bundles, so a retry loses none."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._long = [field.name for field in fields if _is_long(field.kind)]

    def start_bundle(self) -> None:
        self._open: dict[BoundedWindow, list[Any]] = {}
        self._bytes: Counter[BoundedWindow] = Counter()

    def process(
        self,
        row: Any,
        window: BoundedWindow = beam.DoFn.WindowParam,  # type: ignore[assignment]
    ) -> Iterator[WindowedValue]:
        rows = self._open.setdefault(window, [])
        rows.append(row)
        for name in self._long:
            value = getattr(row, name)
            self._bytes[window] += len(value) if isinstance(value, Sized) else 8
        if len(rows) == _CHUNK_ROWS or self._bytes[window] >= _CHUNK_BYTES:
            del self._bytes[window]
            yield self._chunk(self._open.pop(window), window)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window, rows in self._open.items():
            yield self._chunk(rows, window)
        self._open = {}

    def _chunk(self, rows: list[Any], window: BoundedWindow) -> WindowedValue:
        return WindowedValue(chunk_of(rows, self._fields), window.max_timestamp(), (window,))


def _is_long(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_list(kind))


def chunk_of(rows: Sequence[Any], fields: Sequence[Field]) -> pa.RecordBatch:
    """A chunk of `rows`; a value that does not fit its field is null, and its row is marked as refused."""
    arrays, refused = [], dict[int, tuple[Field, Any]]()
    for field in fields:
        values = [getattr(row, field.name) for row in rows]
        found = isolate(lambda low, high, make=field.array, of=values: make(of[low:high]), 0, len(rows))  # type: ignore[misc]
        parts = [(low, array) for low, _, array in found.results]
        for row, _ in found.failures:
            refused.setdefault(row, (field, values[row]))
            parts.append((row, pa.nulls(1, field.kind)))
        parts.sort(key=lambda part: part[0])
        arrays.append(parts[0][1] if len(parts) == 1 else pa.concat_arrays([array for _, array in parts]))
    schema = pa.schema([(field.name, field.kind) for field in fields])
    failures: RowFailures = {
        row: misfit(pa.field(field.name, field.kind), _shown(value), row, _ROWS, _raw(rows[row], fields))
        for row, (field, value) in refused.items()
    }
    return with_refusals(with_provenance(pa.RecordBatch.from_arrays(arrays, schema=schema), "rows", 0), failures)


def _raw(row: Any, fields: Sequence[Field]) -> str:
    return dumps({field.name: _shown(getattr(row, field.name)) for field in fields})


def _shown(value: Any) -> Any:
    """`value`, or its text where JSON has nothing for it."""
    try:
        dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value


class _Letters:
    """Makes the rows of errors of dead letters."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._rows = Rows(pa.schema([(field.name, field.kind) for field in fields]), fields)
        texts: list[tuple[str, Any]] = [(name, nullable(str)) for name in ("msg", *_REASONS)]
        self.element_type = RowTypeConstraint.from_fields([("element", cast("Any", self._rows.element_type)), *texts])

    def values(self, dead: pa.RecordBatch) -> Iterator[Row]:
        letters = dead.column(DEAD_LETTER).to_pylist()
        for element, letter in zip(self._rows.values(dead), letters, strict=True):
            yield Row(element=element, msg=letter["message"], **{name: letter[name] for name in _REASONS})


def _fail(dead: pa.RecordBatch) -> NoReturn:
    letter = dead.column(DEAD_LETTER)[0].as_py()
    raise RowsFailedError(
        f"a row was not scored: {letter['message']} ({letter['stage']}, {letter['type']}); give TorchScore "
        "error_handling to get such rows as an output"
    )
