"""What the driver settles about messages before a run: their columns, and the decoder that reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from handlers.encode.specs import CategoricalInput, ImageInput, InputSpec, NumericInput, SequenceInput, TextInput
from handlers.errors import UsageError, one_line
from handlers.model.spec import ModelSpec
from handlers.model.stores import explain
from handlers.redact import redact
from transforms.file_ops import read_text
from transforms.inference.sample import sample_rows
from transforms.sources import Input, plan_input
from transforms.streams.decode import Decoder
from transforms.streams.formats.avro import AvroDecoder, check_schema
from transforms.streams.formats.json import JsonDecoder
from transforms.streams.formats.registry import FramedDecoder, SchemaRegistry
from transforms.streams.formats.text import BytesDecoder, TextDecoder

FORMATS = ("json", "avro", "text", "bytes")
MAX_MESSAGE_BYTES = 8 << 20


@dataclass(frozen=True)
class MessageFormat:
    """How the values of messages are read.

    Attributes:
        name: `json`, `avro`, `text` or `bytes`.
        schema: a file: for JSON an object of column and type, for Avro the schema; None for what the model says.
        sample: files of rows like those of the messages, in any format that `plan_input` reads: for JSON their columns and
            types are those of the messages. They settle what a schema does not say, such as the length of lists.
        registry: the URL of a schema registry, whose ids are before every value; None for values without.
        max_bytes: a larger value is not read.
    """

    name: str = "json"
    schema: str | None = None
    sample: str | None = None
    registry: str | None = None
    max_bytes: int = MAX_MESSAGE_BYTES


def decoder_of(form: MessageFormat, spec: ModelSpec, topic: str, config: str | None = None) -> Decoder:
    """The decoder of messages for a model.

    Args:
        form: how values are read.
        spec: the model.
        topic: whose newest schema counts for Avro where `form` has none.
        config: a file with options of the registry's client.

    Raises:
        UsageError: for a schema that cannot be read, that is missing, or that has no meaning for the format.
    """
    if spec.sequences is not None:
        raise UsageError(
            "the model takes windows of rows (sequences in model.yaml), which a stream does not cut; score with torchbeam score"
        )
    if form.name in ("text", "bytes"):
        return _of_one_column(form, spec)
    if form.name == "json":
        decoder = _json_decoder(form, spec)
        return FramedDecoder(decoder, _registry(form.registry, config)) if form.registry else decoder
    if form.name == "avro":
        return _avro_decoder(form, topic, config)
    raise UsageError(f'--message_format "{form.name}" must be one of {", ".join(FORMATS)}')


def sample_of(form: MessageFormat, spec: ModelSpec) -> pa.RecordBatch | None:
    """The rows of `form.sample` with provenance; None without one. Raises `UsageError` where they cannot be read."""
    return None if form.sample is None else sample_rows(_input(form.sample, spec))


def _input(pattern: str, spec: ModelSpec) -> Input:
    return plan_input(pattern, numeric_columns=spec.numeric_columns)


def _json_decoder(form: MessageFormat, spec: ModelSpec) -> JsonDecoder:
    if form.schema:
        return JsonDecoder(_json_schema(form.schema))
    if form.sample is None:
        return JsonDecoder(columns_of_model(spec))
    source = _input(form.sample, spec)
    for each in source.schema:
        if not _in_json(each.type):
            raise UsageError(
                f'--sample {form.sample}: column "{each.name}" has type {each.type}, which JSON does not have; write the columns '
                "of messages as --schema=FILE"
            )
    return JsonDecoder(source.schema, source.splits[0].untyped if source.splits else frozenset())


def _avro_decoder(form: MessageFormat, topic: str, config: str | None) -> Decoder:
    registry = _registry(form.registry, config) if form.registry else None
    if form.schema:
        return AvroDecoder(check_schema(read_json(form.schema), f"--schema {form.schema}"), registry)
    if registry is None:
        raise UsageError("--message_format=avro needs --schema=FILE.avsc, or --schema_registry=URL")
    return AvroDecoder(check_schema(registry.newest(topic), f'the newest schema of "{topic}"'), registry)


def _registry(url: str, config: str | None) -> SchemaRegistry:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f'--schema_registry "{redact(url)}" must be a URL, as http://host:8081')
    registry = SchemaRegistry(url, config)
    registry.reach()
    return registry


def _of_one_column(form: MessageFormat, spec: ModelSpec) -> Decoder:
    if form.registry:
        raise UsageError(f"--schema_registry has no meaning with --message_format={form.name}")
    kind = pa.string() if form.name == "text" else pa.binary()
    if form.schema:
        names = _json_schema(form.schema).names
    else:
        names = list(dict.fromkeys(name for each in spec.inputs for name in each.patterns))
    if len(names) != 1:
        raise UsageError(
            f"--message_format={form.name} is for models of one column, and this one has {len(names)}: "
            f"{', '.join(names[:5])}; use json or avro"
        )
    schema = pa.schema([(names[0], kind)])
    return TextDecoder(schema) if form.name == "text" else BytesDecoder(schema)


def columns_of_model(spec: ModelSpec) -> pa.Schema:
    """The columns that the inputs of `model.yaml` read, with the types that they take.

    Raises:
        UsageError: if the model does not say them: patterns, features and functions, or no inputs at all.
    """
    wanted = 'give rows like them as --sample=FILE, or --schema=FILE, in JSON: {"age": "float64", "country": "string"}'
    for what, found in (("features", spec.features), ("preprocess", spec.preprocess)):
        if found:
            raise UsageError(f"the columns of messages are unknown, since model.yaml has {what}; {wanted}")
    if not spec.inputs:
        raise UsageError(f"the columns of messages are unknown, since model.yaml has no inputs; {wanted}")
    fields: dict[str, pa.DataType] = {}
    for each in spec.inputs:
        kind = _type_of(each)
        for name in each.patterns:
            if kind is None or any(mark in name for mark in "*?["):
                raise UsageError(
                    f'the columns of messages are unknown: model.yaml has "{name}" for input {each.name}; {wanted}'
                )
            if fields.setdefault(name, kind) != kind:
                raise UsageError(
                    f'two inputs of the model take column "{name}", as {fields[name]} and {kind}; {wanted}'
                )
    return pa.schema(list(fields.items()))


def _type_of(spec: InputSpec) -> pa.DataType | None:
    """The type of the columns of an input; None if that cannot be known."""
    if isinstance(spec, TextInput | ImageInput):
        return pa.string()  # an image is a path
    step = spec.step if isinstance(spec, SequenceInput) else spec
    if isinstance(step, CategoricalInput):
        first = (step.categories or (0,))[0]
        kind = pa.string() if isinstance(first, str) else pa.bool_() if isinstance(first, bool) else pa.int64()
    elif isinstance(step, NumericInput):
        if step.timestamp is not None:
            return None
        kind = pa.float64()
    else:
        return None
    return pa.list_(kind) if isinstance(spec, SequenceInput) else kind


def _json_schema(path: str) -> pa.Schema:
    content = read_json(path)
    if not isinstance(content, dict) or not content or not all(isinstance(kind, str) for kind in content.values()):
        raise UsageError(f'--schema {path} must be a JSON object of column and type, as {{"age": "float64"}}')
    return pa.schema([(name, _named_type(name, kind, path)) for name, kind in content.items()])


def _named_type(column: str, text: str, path: str) -> pa.DataType:
    kind = text.strip()
    if kind.startswith("list<") and kind.endswith(">"):
        return pa.list_(_named_type(column, kind[5:-1], path))
    try:
        found = pa.type_for_alias(kind)
    except ValueError:
        found = None
    if found is None or not _in_json(found):
        raise UsageError(
            f'--schema {path}: column "{column}" has type "{text}"; write float64, float32, int64, int32, string, bool, '
            "date32, timestamp[us] or list<…> of one of them"
        )
    return found


def _in_json(kind: pa.DataType) -> bool:
    types = pa.types
    checks = (
        types.is_floating,
        types.is_integer,
        types.is_boolean,
        types.is_string,
        types.is_date32,
        types.is_timestamp,
    )
    if types.is_struct(kind):
        return all(_in_json(each.type) for each in kind)
    if types.is_list(kind):
        return _in_json(kind.value_type)
    return any(check(kind) for check in checks) and kind != pa.float16()


def read_json(path: str) -> Any:
    """The content of a JSON file; raises `UsageError` where it cannot be read."""
    try:
        text = read_text(path)
    except Exception as error:
        raise UsageError(f"--schema {path} cannot be read: {explain(error)}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--schema {path} is not JSON: {one_line(error)}") from None
