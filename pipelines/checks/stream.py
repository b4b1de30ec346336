"""The checks of the doctor for a stream: those that `stream` makes before it runs, one by one."""

from __future__ import annotations

from dataclasses import replace

from handlers.model.directory import ModelDir
from pipelines.checks.checkup import Checkup, Finding, SkipError
from pipelines.checks.steps import device, ignored, names
from pipelines.jobs import streaming
from pipelines.jobs.options import open_model
from pipelines.jobs.stream_options import StreamOptions, watch_of
from transforms.streams.endpoints import sink_of, source_of


def examine(checkup: Checkup, options: StreamOptions) -> None:
    """Checks everything that is given."""
    model = checkup.check("model", lambda: _model(options))
    checkup.check("runner", lambda: _runner(options))
    checkup.check("options", lambda: ignored(options.run, options.model, options.beam))
    checkup.check("device", lambda: device(options.model, options.how.runner))
    checkup.check("input", lambda: _source(options))
    for name in ("output", "dead_letters", "accounts"):
        checkup.check(name, lambda name=name: _sink(options, name))  # type: ignore[misc]
    checkup.check("columns", lambda: _columns(options, model.value))
    checkup.check("metrics", lambda: _metrics(options))


def _model(options: StreamOptions) -> Finding[ModelDir]:
    """The model, or the newest of its location, is complete and valid."""
    if not options.model.model:
        raise SkipError("no --model was given")
    options.connect()
    found = watch_of(options.model).find()
    model = open_model(replace(options.model, model=found.path))
    every = options.model.refresh_every
    newer = f"; newer ones are looked for every {every:g} s" if every else ""
    return Finding(f"{model.spec.name}, version {model.version}: {model.spec.task}, {model.spec.format}{newer}", model)


def _runner(options: StreamOptions) -> Finding[None]:
    """The runner can run a stream, and its program is there."""
    launch = streaming.settle(options)
    return Finding(f"{options.how.runner}{f', {launch.prism}' if launch.prism else ''}", None)


def _source(options: StreamOptions) -> Finding[None]:
    """The broker answers, and the messages are there."""
    if not options.source.input:
        raise SkipError("no --input was given")
    source = source_of(options.source.input, streaming.settings(options))
    source.check()
    partitions = len(source.partitions())
    return Finding(f"{source.name} answers, {partitions} partition{'s' * (partitions != 1)}", None)


def _sink(options: StreamOptions, name: str) -> Finding[None]:
    """Messages can be written there."""
    address = getattr(options.sink, name)
    if not address:
        raise SkipError(f"no --{name} was given")
    sink = sink_of(address, streaming.settings(options), f"--{name}", whole=name == "dead_letters")
    sink.check()
    return Finding(f"{sink.name} can be written to", None)


def _columns(options: StreamOptions, model: ModelDir) -> Finding[None]:
    """The columns of the messages fit the model, and its functions run."""
    if missing := [name for name in ("output", "dead_letters") if not getattr(options.sink, name)]:
        raise SkipError(f"no --{missing[0]} was given")
    if not options.source.input:
        raise SkipError("no --input was given")
    stream = streaming.scoring(options, model)
    read, written = stream.decoder.schema.names, stream.score.predictions_schema.names
    return Finding(
        f"messages have {names(read)}; predictions get {names([each for each in written if each not in read])}", None
    )


def _metrics(options: StreamOptions) -> Finding[None]:
    """The port for metrics is free."""
    if options.sink.metrics_port is None:
        raise SkipError("no --metrics_port was given")
    streaming.check_metrics(options)
    return Finding(f"port {options.sink.metrics_port}", None)
