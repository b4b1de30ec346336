"""What a worker process does with a model in a bucket; a module of its own, since a new process imports it whole."""

from __future__ import annotations

import tempfile

from apache_beam.options.pipeline_options import PipelineOptions

from handlers.model import stores
from handlers.model.directory import ModelDir


def copy_model(model: ModelDir, options: list[str], temporary_folder: str) -> str:
    tempfile.tempdir = temporary_folder
    stores.connect({}, PipelineOptions(options))
    return str(model.local())
