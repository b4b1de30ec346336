"""Warns about options that the chosen runner silently ignores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DirectOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    SparkRunnerOptions,
    WorkerOptions,
)

from pipelines.command.options import IN_PROCESS, ModelOptions, RunOptions

_DATAFLOW, _FLINK, _SPARK = "DataflowRunner", "FlinkRunner", "SparkRunner"
# Beam's option groups that only one runner uses.
_OWNERS: dict[type[PipelineOptions], tuple[str, ...]] = {
    DirectOptions: IN_PROCESS,
    FlinkRunnerOptions: (_FLINK,),
    SparkRunnerOptions: (_SPARK,),
    WorkerOptions: (_DATAFLOW,),
}
# Other runners use these of WorkerOptions, too.
_COMMON = ("--sdk_", "--default_sdk_", "--max_cache_", "--element_processing_", "--worker_harness_container_image")
# Spark's settings are Java properties of the job server.
_SETTING = "--job_server_jvm_properties=-D"
_INSTEAD = {
    ("--accelerator", _SPARK): f"ask for GPUs with {_SETTING}spark.executor.resource.gpu.amount=1",
    ("--min_ram", _SPARK): f"use {_SETTING}spark.executor.memory=…",
    ("--num_workers", _SPARK): f"set the cores of the job with {_SETTING}spark.cores.max=…",
}


def ignored_options(run: RunOptions, model: ModelOptions, beam: Sequence[str]) -> list[str]:
    """A line for each given option that the runner ignores, with what to use instead.

    Args:
        run: the options of the run.
        model: the options of the model, for its resource hints.
        beam: the arguments for Beam.
    """
    runner = run.runner
    ours = {
        "--accelerator": (_DATAFLOW, model.accelerator),
        "--min_ram": (_DATAFLOW, model.min_ram),
        "--wait": (_DATAFLOW, run.wait or None),
        "--spark_version": (_SPARK, run.spark_version),
        "--spark_master_ui": (_SPARK, run.spark_master_ui),
    }
    found: dict[str, tuple[str, ...]] = {
        name: (owner,) for name, (owner, value) in ours.items() if value is not None and runner != owner
    }
    given = [argument.split("=")[0] for argument in beam if argument.startswith("--")]
    for kind, owners in _OWNERS.items():
        if runner not in owners:
            found |= {name: owners for name in given if name in _flags(kind)}
    lines = []
    if runner == _DATAFLOW and run.max_failure_rate < 1 and not run.wait:
        lines.append("--max_failure_rate has no effect without --wait: the command ends before the rows are counted")
    for name, owners in found.items():
        instead = _INSTEAD.get((name, runner)) or f"it is for --runner={owners[0]}"
        lines.append(f"{name} is ignored by {runner}; {instead}")
    return lines


def _flags(kind: type[PipelineOptions]) -> set[str]:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    if add := getattr(kind, "_add_argparse_args", None):
        add(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    return {flag for flag in flags if not flag.startswith(_COMMON)}
