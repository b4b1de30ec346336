"""`ScoreStream`: scores the messages of a stream and delivers what becomes of each."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from handlers.batching import Batching, ResourceHints
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.predict.placement import Placement
from handlers.redact import redact
from handlers.refresh.watch import Refresh
from transforms.inference.score import Score
from transforms.streams.accounts import Accounts
from transforms.streams.decode import Decode, Decoded, Decoder
from transforms.streams.deliver import Deliver, Delivery, delivery_of
from transforms.streams.encode import MESSAGE_ID
from transforms.streams.endpoints import Settings, sink_of, source_of
from transforms.streams.handler import StreamModelHandler
from transforms.streams.messages import Sink, Source
from transforms.streams.read import MicroBatches, Partitions, ReadInTurn, ReadMessages
from transforms.streams.scored import ScoredMessages
from transforms.streams.settle import MessageFormat, decoder_of, sample_of


@dataclass(eq=False)
class ScoreStream(beam.PTransform[Any, Any]):
    """Scores the messages of a stream: a pipeline's begin to `PCollection[Accounts]`, one for each chunk.

    Each message comes out once: as a prediction in JSON under its key, headers and event time; as a dead letter, byte for byte,
    with the reason in its headers; or counted as dropped by a function. Outputs carry the id of their message,
    `topic/partition/offset`, in the header `torchbeam-id` and the column `message_id`. What was read is committed after its
    outputs are written.

    When the pipeline is built, the broker is asked, and the model is loaded once in this process, on the CPU; invalid
    settings raise then.

    Attributes:
        source: where messages come from: `kafka://HOST:9092/TOPIC`, `folder:DIR`, or a `Source`.
        model: a model directory, its path, or the path of a bare `.pt2` or TorchScript file.
        predictions: where predictions go: `kafka://HOST:9092/TOPIC`, `folder:DIR`, or a `Sink`.
        dead_letters: where messages go that cannot be scored.
        accounts: where the counts of chunks go; None for nowhere.
        form: how the values of messages are read.
        batches: when messages become a chunk.
        settings: of sources and sinks that are given by address.
        delivery: how outputs are written and what was read is committed; by default at least once.
        window_seconds: of event time, by which messages are counted.
        metrics_port: where every worker process serves metrics in Prometheus text; None for nowhere.
        columns: names and patterns of the columns that are copied into the predictions.
        preprocess: functions on rows, as `module:function`, after those of the model directory.
        postprocess: functions on predictions, likewise.
        probabilities: whether a classification also returns the probability of every class.
        placement: where the model runs in every worker.
        batch_size: rows of a call of the model; None chooses by the bytes of a row.
        hints: resource hints of the inference step.
        driver: where the model runs in this process, to determine the output columns.
        run_id: the key of the run in this process, for its progress and its end.
        stop_after: messages after which the run ends; None for no end.
        in_turn: whether one thread reads all partitions; by default on Beam's in-process runner. Otherwise each is read by a
            splittable DoFn.
        refresh: where newer models are, which take the place of `model` between two chunks.

    Raises:
        UsageError: for a broker, topic, folder, schema, model directory, columns or functions that cannot work.
        BrokenModelError: if the model fails on zeros.
    """

    source: Source | str
    model: ModelDir | str | os.PathLike[str]
    predictions: Sink | str
    dead_letters: Sink | str
    accounts: Sink | str | None = None
    _: KW_ONLY
    form: MessageFormat = MessageFormat()
    batches: MicroBatches = MicroBatches()
    settings: Settings = Settings()
    delivery: Delivery | None = None
    window_seconds: float = 60.0
    metrics_port: int | None = None
    columns: Sequence[str] = ("*",)
    preprocess: Sequence[str] = ()
    postprocess: Sequence[str] = ()
    probabilities: bool = False
    placement: Placement = Placement()
    batch_size: int | None = None
    hints: ResourceHints = ResourceHints()
    driver: Placement = Placement("cpu")
    run_id: str = ""
    stop_after: int | None = None
    in_turn: bool | None = None
    refresh: Refresh | None = None

    def __post_init__(self) -> None:
        self._checked = False
        self.run_id = self.run_id or uuid.uuid4().hex
        self._model = self.model if isinstance(self.model, ModelDir) else ModelDir(self.model)
        output = self.predictions if isinstance(self.predictions, str) else self.predictions.name
        made = replace(self.settings, output=output)
        self._check_apart()
        self._source = source_of(self.source, made) if isinstance(self.source, str) else self.source
        self._delivery = self.delivery or delivery_of(self._source)(
            self._source,
            _sink(self.predictions, made, "--output"),
            _sink(self.dead_letters, made, "--dead_letters", whole=True),
            None if self.accounts is None else _sink(self.accounts, made, "--accounts"),
        )

    def _check_apart(self) -> None:
        """Refuses an address that is given for two things: predictions would be read again, or dead letters lost in them."""
        given = {
            "--input": self.source,
            "--output": self.predictions,
            "--dead_letters": self.dead_letters,
            "--accounts": self.accounts,
        }
        flags: dict[str, str] = {}
        for flag, address in given.items():
            if not isinstance(address, str):
                continue
            scheme, _, rest = address.partition(":")
            key = f"{scheme}:{os.path.abspath(rest) if scheme == 'folder' else rest.rstrip('/')}"  # noqa: PTH100
            if key in flags:
                raise UsageError(f"{flags[key]} and {flag} are the same, {redact(address)}; give them different ones")
            flags[key] = flag

    def check(self) -> None:
        """Settles all that can be before the run, once; raises what the run would fail with."""
        if self._checked:
            return
        self._delivery.check()
        output = self.score.predictions_schema
        if MESSAGE_ID in output.names:
            raise UsageError(
                f'the predictions have a column "{MESSAGE_ID}", which is for the id of the message; rename it'
            )
        self._checked = True

    @cached_property
    def decoder(self) -> Decoder:
        """Reads the values of messages."""
        return decoder_of(self.form, self._model.spec, self._source.name, self.settings.config)

    @cached_property
    def score(self) -> Score:
        """The scoring of rows, with the columns of the predictions."""
        return Score(
            self._model,
            self.decoder.schema,
            sample_of(self.form, self._model.spec),
            columns=self.columns,
            preprocess=self.preprocess,
            postprocess=self.postprocess,
            probabilities=self.probabilities,
            placement=self.placement,
            batching=Batching(chunk_rows=self.batches.rows, batch_size=self.batch_size),
            hints=self.hints,
            driver=self.driver,
            refresh=self.refresh,
        )

    def expand(self, begin: PBegin) -> PCollection[Accounts]:
        """Partitions → Read → Decode → RunInference → Deliver: all but the first are one fused stage."""
        self.check()
        handler = StreamModelHandler(self.score.handler)
        together = isinstance(begin.pipeline.runner, FnApiRunner) if self.in_turn is None else self.in_turn
        read: beam.DoFn = (ReadInTurn if together else ReadMessages)(
            self._source, self.batches, self.run_id, self.stop_after
        )
        accounts: PCollection[Accounts] = (
            begin
            | "Start" >> beam.Impulse()
            | "Partitions"
            >> beam.ParDo(Partitions(self._source, together=together)).with_output_types(
                tuple[str, ...] if together else str
            )
            | "Read" >> beam.ParDo(read)
            | "Decode" >> beam.ParDo(Decode(self.decoder, self.form.max_bytes)).with_output_types(Decoded)
            | "RunInference" >> RunInference(handler, model_identifier=handler.tag).with_output_types(ScoredMessages)
            | "Deliver" >> beam.ParDo(Deliver(self._delivery, self.window_seconds, self.run_id, self.metrics_port))
        )
        return accounts


def _sink(given: Sink | str, settings: Settings, flag: str, *, whole: bool = False) -> Sink:
    return sink_of(given, settings, flag, whole=whole) if isinstance(given, str) else given
