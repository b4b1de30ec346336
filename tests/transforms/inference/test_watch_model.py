"""`WatchModel` and Beam's own watch as the side input of RunInference with our handler for examples."""

import logging
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import torch
from apache_beam.io.filesystem import FileMetadata
from apache_beam.ml.inference.base import ModelMetadata, RunInference
from apache_beam.ml.inference.utils import WatchFilePattern
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from handlers import ModelDir, TorchModelHandler
from handlers.errors import UsageError
from handlers.refresh.watch import ModelWatch
from transforms.inference.watch_model import WatchModel, _Look

INPUTS = [{"name": "x", "columns": ["a", "b"]}]
ARGUMENTS = {"in_features": 2, "out_features": 1}
# The runner on which a TestStream may have a side input.
STREAMING = PipelineOptions(["--runner=BundleBasedDirectRunner", "--streaming"])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Versions 1 and 2, which add 1 and 2, and a pointer to the first."""
    for version in (1, 2):
        module = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(module.weight)
        torch.nn.init.constant_(module.bias, float(version))
        ModelDir.save(module, tmp_path / f"models/{version}", inputs=INPUTS, arguments=ARGUMENTS)
    (tmp_path / "CURRENT").write_text("models/1")
    return tmp_path


def examples(*times: int) -> list[TimestampedValue]:
    return [TimestampedValue({"a": 0.0, "b": float(each)}, each) for each in times]


def answered(results: beam.PCollection) -> beam.PCollection:
    """The example, what was added to it, and the version."""

    def of(result: Any) -> tuple[float, float, str]:
        return result.example["b"], result.inference[0].item() - result.example["b"], Path(result.model_id).name

    return results | "Answered" >> beam.Map(of)


def test_examples_of_a_window_are_scored_by_its_model(models: Path) -> None:
    def promote(tick: int) -> int:
        if tick == 10:
            (models / "CURRENT").write_text("models/2")
        return tick

    stream = TestStream(output_tags={"ticks", "examples"})
    for tick in (0, 10, 20):
        stream.advance_watermark_to(tick, tag="ticks").add_elements([TimestampedValue(tick, tick)], tag="ticks")
        stream.advance_watermark_to(tick, tag="examples")
        stream.add_elements(examples(tick, tick + 4), tag="examples")
    stream.advance_watermark_to_infinity(tag="ticks").advance_watermark_to_infinity(tag="examples")
    watch = ModelWatch(str(models / "CURRENT"))
    with beam.Pipeline(options=STREAMING) as pipeline:
        streams = pipeline | stream
        found = (
            streams["ticks"]
            | beam.Map(promote)
            | beam.ParDo(_Look(watch, watch.first().path))
            | "Models" >> beam.WindowInto(FixedWindows(10))
        )
        results = (
            streams["examples"]
            | "Examples" >> beam.WindowInto(FixedWindows(10))
            | RunInference(TorchModelHandler(watch.first()), model_metadata_pcoll=found)
        )
        expected = [(0, 1, "1"), (4, 1, "1"), (10, 2, "2"), (14, 2, "2"), (20, 2, "2"), (24, 2, "2")]
        assert_that(answered(results), equal_to(expected))


def test_the_transform_as_a_side_input(models: Path) -> None:
    (models / "CURRENT").write_text("models/2")
    now = time.time()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | WatchModel(ModelWatch(str(models / "CURRENT")), every=3600, stop=now)
        results = (
            pipeline
            | beam.Create([{"a": 0.0, "b": 3.0}])
            | beam.Map(lambda example: TimestampedValue(example, now))
            | "Examples" >> beam.WindowInto(FixedWindows(3600))
            | RunInference(TorchModelHandler(models / "models/1"), model_metadata_pcoll=found)
        )
        assert_that(answered(results), equal_to([(3, 2, "2")]))


def test_a_model_that_is_refused(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    look = _Look(ModelWatch(f"{models}/models/*"), str(models / "models/2"))

    def versions(ticks: int) -> list[ModelMetadata]:
        return [found for tick in range(ticks) for found in look.process(tick)]

    assert versions(1) == [ModelMetadata(str(models / "models/2"), "2")]
    broken = models / "models/3"
    broken.mkdir()
    (broken / "model.yaml").write_text((models / "models/2/model.yaml").read_text())
    assert {each.model_name for each in versions(3)} == {"2"}
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert line.startswith(f"a newer model is refused: {broken} has no file weights.safetensors")
    (broken / "weights.safetensors").write_bytes((models / "models/2/weights.safetensors").read_bytes())
    assert versions(1) == [ModelMetadata(str(broken), "3")]


def test_where_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="put a model there"):
        WatchModel(f"{tmp_path}/*")
    with pytest.raises(UsageError, match="a model is looked for every"):
        WatchModel("nowhere", every=0)


def test_the_watch_of_beam(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pattern matches files: the `model.yaml` of a directory. A second one fails on every runner here."""
    path = str(models / "models/2/model.yaml")
    stream = TestStream(output_tags={"files", "examples"})
    stream.advance_watermark_to(0, tag="files")
    stream.add_elements([FileMetadata(path, 1, time.time() + 1000)], tag="files")
    stream.advance_processing_time(10).advance_watermark_to(0, tag="examples")
    stream.add_elements(examples(3), tag="examples")
    stream.advance_watermark_to_infinity(tag="files").advance_watermark_to_infinity(tag="examples")
    with beam.Pipeline(options=STREAMING) as pipeline:
        streams = pipeline | stream
        # What it lists files with runs on no runner here.
        monkeypatch.setattr("apache_beam.ml.inference.utils.MatchContinuously", lambda **_: beam.Map(lambda file: file))
        found = streams["files"] | WatchFilePattern(f"{models}/models/*/model.yaml")
        results = (
            streams["examples"]
            | "Examples" >> beam.WindowInto(FixedWindows(10))
            | RunInference(TorchModelHandler(models / "models/1"), model_metadata_pcoll=found)
        )
        assert_that(answered(results), equal_to([(3, 2, "2")]))
