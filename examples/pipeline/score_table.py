"""The columnar path in a pipeline of your own: reads files in chunks, scores them, and writes what came of every row.

    python examples/pipeline/score_table.py 'data/*.parquet' models/credit out/pipeline [--runner=…]

writes under `out/pipeline`: `predictions/` and `dead_letters/`, `files-….tsv` with the path and the rows of each file that
was written, and `counts-….json` of all rows.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from torchbeam import Counts, ModelDir, ReadChunks, Score, WriteChunks, plan_input


def add_up(counts: Iterable[Counts]) -> Counts:
    """The counts of all chunks in one."""
    return sum(counts, Counts())


def unread(chunk: pa.RecordBatch) -> Counts:
    """The rows of a chunk of dead letters that could not be read."""
    return Counts(rows_dead=chunk.num_rows)


def doubtful(chunk: pa.RecordBatch, below: float) -> int:
    """How many predictions of a chunk are less sure than `below`: a step of your own, over thousands of rows at once."""
    return int(pc.sum(pc.less(chunk.column("confidence"), below)).as_py() or 0)


def build(pipeline: beam.Pipeline, pattern: str, model_path: str, output: str) -> None:
    """Puts the pipeline together; what cannot work raises here, in one line, before anything runs."""
    model = ModelDir(model_path)
    source = plan_input(pattern, numeric_columns=model.spec.numeric_columns)
    score = Score(model, source.schema)

    read = pipeline | "Read" >> ReadChunks(source, score.needed, model_version=score.model_version)
    scored = read.chunks | "Score" >> score

    written = scored.predictions | "WritePredictions" >> WriteChunks(f"{output}/predictions", score.predictions_schema)
    letters = (read.dead_letters, scored.dead_letters) | "DeadLetters" >> beam.Flatten()
    kept = letters | "WriteDeadLetters" >> WriteChunks(f"{output}/dead_letters", score.dead_letters_schema)
    _ = (
        (written, kept)
        | "Files" >> beam.Flatten()
        # A runner that repeats a bundle may leave a file of an earlier attempt; it is not among these.
        | beam.Map(lambda part: f"{part.path}\t{part.rows}")
        | "WriteFiles" >> beam.io.WriteToText(f"{output}/files", ".tsv")
    )
    _ = (
        (scored.counts, read.dead_letters | "Unread" >> beam.Map(unread))
        | "Counts" >> beam.Flatten()
        | beam.CombineGlobally(add_up)
        | beam.Map(lambda counts: json.dumps(asdict(counts)))
        | "WriteCounts" >> beam.io.WriteToText(f"{output}/counts", ".json", shard_name_template="")
    )
    _ = (
        read.files
        | beam.FlatMap(lambda files: [f"{file.path}: {file.error}" for file in files if file.error])
        | "FailedFiles" >> beam.Map(print)
    )
    if "confidence" in score.predictions_schema.names:
        _ = (
            scored.predictions
            | beam.Map(doubtful, below=0.8)
            | beam.CombineGlobally(sum)
            | beam.Map(lambda rows: print(f"{rows} predictions have a confidence below 0.8"))
        )


def main() -> None:
    """Runs it; options that are not its own are Beam's."""
    parser = argparse.ArgumentParser(description="Score files in a Beam pipeline of your own.")
    parser.add_argument("input", help="file, directory or pattern")
    parser.add_argument("model", help="model directory")
    parser.add_argument("output", help="folder for predictions, dead letters and counts")
    arguments, others = parser.parse_known_args()
    options = PipelineOptions(others or ["--runner=FnApiRunner"])
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline, arguments.input, arguments.model, arguments.output)


if __name__ == "__main__":
    main()
