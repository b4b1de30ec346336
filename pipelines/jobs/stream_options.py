"""All options of `stream`. Imports neither torch nor Beam."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from handlers.batching import in_bytes
from handlers.errors import UsageError
from handlers.model.registry import is_reference, registry_folder
from handlers.paths import is_mlflow, is_remote
from pipelines.command.options import (
    MODEL_HELP,
    Command,
    ModelOptions,
    RunOptions,
    flag,
    option,
    parser,
    pick,
)
from pipelines.command.values import names, path, positive

if TYPE_CHECKING:
    from handlers.refresh.watch import ModelWatch

MAX_MESSAGE_BYTES = 8 << 20
_SINKS = "kafka://HOST:9092/TOPIC, pubsub://PROJECT/topics/NAME or folder:DIR"
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A duration with its unit, such as 50ms, 1m or 0.5s, in seconds; raises `ValueError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f'must be a duration with its unit, such as 50ms, 10s or 1m, not "{text}"')
    return float(match[1]) * _UNITS[match[2]]


def message_bytes(text: str) -> int:
    """A size with its unit, such as 8MB, in bytes; raises `ValueError`."""
    size = in_bytes(text, "8MB")
    if not 1 <= size <= 1 << 30:
        raise ValueError(f'must be 1B to 1GiB, not "{text}"')
    return size


def port(text: str) -> int:
    """A port of this machine; raises `ValueError`."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f'must be a port, 1 to 65535, not "{text}"')
    return int(text)


def group_name(text: str) -> str:
    """The name of a reader, which is also that of a folder; raises `ValueError`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", text):
        raise ValueError(f'must be letters, digits, ".", "_" and "-", at most 200, not "{text}"')
    return text


@dataclass(frozen=True)
class StreamSourceOptions:
    """Where messages come from, and how they are read."""

    TITLE = "source"

    input: str = option(
        "where messages come from: kafka://HOST:9092[,HOST2:9092]/TOPIC, pubsub://PROJECT/subscriptions/NAME, or folder:DIR, a "
        "folder into which whole files are moved",
        parse=path,
    )
    group: str | None = option(
        "name of the reader whose position is kept, on Kafka the consumer group; another name starts anew (default: "
        "torchbeam, and for Kafka torchbeam.TOPIC.OUTPUT)",
        None,
        parse=group_name,
        metavar="NAME",
    )
    begin: Literal["earliest", "latest"] = option(
        "where a partition begins for which no position is kept: earliest or latest (default: earliest)",
        "earliest",
        choices=("earliest", "latest"),
        flag="from",
    )
    kafka_config: str | None = option(
        "options of the clients of Kafka, as name=value lines in librdkafka's names: passwords, TLS; it is read where clients "
        "are made, and never shown",
        None,
        parse=path,
        metavar="FILE",
    )
    message_format: str = option(
        "format of the values of messages: json, avro, text or bytes (default: json)",
        "json",
        choices=("json", "avro", "text", "bytes"),
    )
    schema: str | None = option(
        'columns of the messages: for json a file {"COLUMN": "TYPE", …}, for avro the schema, .avsc (default for json: the '
        "inputs in model.yaml; for avro: the newest schema in --schema_registry)",
        None,
        parse=path,
        metavar="FILE",
    )
    sample: str | None = option(
        "files of rows like those of the messages, in any format that torchbeam score reads: for json their columns and types "
        "are those of the messages; they also settle the length of lists",
        None,
        parse=path,
        metavar="FILE",
    )
    schema_registry: str | None = option(
        "URL of a schema registry; values then begin with the id of their schema, as Confluent's serializers write them",
        None,
        parse=path,
        metavar="URL",
    )
    max_message_bytes: int = option(
        "size with a unit of the largest message that is read; a larger one is a dead letter (default: 8MiB)",
        MAX_MESSAGE_BYTES,
        parse=message_bytes,
        metavar="SIZE",
    )
    max_batch_rows: int = option(
        "messages that are scored together at most (default: 8192)", 8192, parse=positive, metavar="N"
    )
    max_batch_delay: float = option(
        "how long a message waits at most for others to be scored with (default: 50ms)",
        0.05,
        parse=seconds,
        metavar="DURATION",
    )
    stop_after: int | None = option(
        "end after N messages were read (default: never)", None, parse=positive, metavar="N"
    )


@dataclass(frozen=True)
class StreamModelOptions(ModelOptions):
    """The model, and how it runs."""

    model: str = option(
        f"{MODEL_HELP}; or a pattern of them, as 'models/credit/*', for the newest; or a text file that holds the path of one",
        parse=path,
    )
    refresh_every: float | None = option(
        "how often to look whether --model stands for a newer model, such as 60s; it is loaded and tried beside the running one, "
        "and then takes its place between two chunks (default: never)",
        None,
        parse=seconds,
        metavar="DURATION",
    )
    newest_by: Literal["version", "time"] = option(
        "which match of a pattern is the newest: by the version in its name (7, v1.4.0, 2026-11-25), or by the time of its "
        "model.yaml (default: version)",
        "version",
        choices=("version", "time"),
    )


@dataclass(frozen=True)
class StreamSinkOptions:
    """Where outputs go."""

    TITLE = "sink"

    output: str = option(f"where predictions go, as JSON: {_SINKS}", parse=path)
    dead_letters: str = option(
        f"where messages go that cannot be scored, as they came, with the reason: {_SINKS}",
        parse=path,
    )
    accounts: str | None = option(
        f"where the counts of each chunk go, as JSON: {_SINKS} (default: nowhere; the log has those of each window)",
        None,
        parse=path,
    )
    delivery: str = option(
        "at_least_once, or exactly_once, where all topics are in one Kafka cluster: outputs and offsets in one transaction "
        "(default: at_least_once)",
        "at_least_once",
        choices=("at_least_once", "exactly_once"),
    )
    columns: tuple[str, ...] = option(
        "columns to copy into the predictions, separated by commas, * for all (default: *)", ("*",), parse=names
    )
    probabilities: bool = flag("task classification: a column probability_CLASS for every class")
    window: float = option(
        "length of the windows of event time by which messages are counted (default: 1m)",
        60.0,
        parse=seconds,
        metavar="DURATION",
    )
    metrics_port: int | None = option(
        "port on which metrics are served in Prometheus text (default: none)", None, parse=port, metavar="PORT"
    )


@dataclass(frozen=True)
class StreamRunOptions:
    """How the stream is executed."""

    TITLE = "run"

    runner: str = option(
        "FnApiRunner (in this process), PrismRunner, DataflowRunner (default: FnApiRunner)", "FnApiRunner"
    )
    wait: bool = flag("on Dataflow: wait until the job ends; otherwise return once it is submitted")
    shared_filesystem: bool = flag("local paths are the same on all machines of the cluster")
    verbose: bool = flag("show the logs of Beam and the tracebacks of errors")


GROUPS = (StreamSourceOptions, StreamModelOptions, StreamSinkOptions, StreamRunOptions)


@dataclass(frozen=True)
class StreamOptions:
    """All options of the command; `beam` are passed to Beam unchanged."""

    source: StreamSourceOptions
    model: StreamModelOptions
    sink: StreamSinkOptions
    how: StreamRunOptions
    beam: tuple[str, ...] = ()

    @property
    def verbose(self) -> bool:
        """Whether the logs of Beam and the tracebacks of errors are shown."""
        return self.how.verbose

    @property
    def run(self) -> RunOptions:
        """The options of the run as all commands have them."""
        how = self.how
        return RunOptions(
            runner=how.runner, wait=how.wait, shared_filesystem=how.shared_filesystem, verbose=how.verbose
        )

    @staticmethod
    def parse(argv: list[str], command: Command) -> StreamOptions:
        """Parses arguments; raises `UsageError`, or SystemExit(0) for `--help`."""
        values, others = parser(command, GROUPS).parse_known_args(argv)
        if others and not others[0].startswith("-"):
            raise UsageError(f'unexpected argument "{others[0]}"; see --help')
        source, model, sink, how = (pick(group, values) for group in GROUPS)
        return StreamOptions(source, model, sink, how, tuple(others))  # type: ignore[arg-type]

    def connect(self) -> None:
        """Asks the store that the model is looked for in.

        Raises:
            UsageError: for one that cannot be reached.
        """
        root, model = registry_folder(self.model.registry), self.model.model
        flag, path = ("registry", root) if is_reference(model) else ("model", model)
        if is_remote(path) and not is_mlflow(path):
            from handlers.model import stores
            from pipelines import runners

            stores.connect({flag: path}, runners.pipeline_options(self.how.runner, self.beam, GROUPS))


def watch_of(options: StreamModelOptions) -> ModelWatch:
    """The location of the model.

    Raises:
        UsageError: if it is to be refreshed and cannot be.
    """
    if options.refresh_every is not None:
        for flag in ("model_version", "device_map"):
            if getattr(options, flag):
                raise UsageError(
                    f"--refresh_every takes newer models, which --{flag} has no meaning for; leave one of them out"
                )
    from handlers.refresh.watch import ModelWatch

    return ModelWatch(options.model, options.trust, options.registry or "", options.newest_by)
