"""Wrong usage of `torchbeam stream`: one line, exit code 2, nothing read."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from stream_folders import Folders, put, rows, save_model

from handlers import ModelDir
from pipelines.stream import main

pytestmark = pytest.mark.slow(10)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return save_model(tmp_path_factory.mktemp("stream_usage") / "model")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = Folders(tmp_path)
    put(found.input, "a.jsonl", rows(3))
    return found


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("torchbeam stream: error: ")
    return line.removeprefix("torchbeam stream: error: ")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            "--max_batch_delay=50",
            '--max_batch_delay must be a duration with its unit, such as 50ms, 10s or 1m, not "50"',
        ),
        ("--window=0s", "--window must be a duration with its unit"),
        ("--max_message_bytes=10", '--max_message_bytes "10" has no unit; write it with one, as 10MB'),
        ("--max_batch_rows=0", "--max_batch_rows must be a whole number of 1 or more"),
        ("--metrics_port=70000", '--metrics_port must be a port, 1 to 65535, not "70000"'),
        ("--message_format=xml", "--message_format: invalid choice: 'xml'"),
        ("--input=sqs:orders", '--input "sqs:orders" is no stream; write it as one of'),
        ("--output=out", '--output "out" is no stream; write it as one of'),
        ("--input=folder:/none/there", 'folder "/none/there" is not there; make it'),
        ("--dead_letters=folder:IN", "--input and --dead_letters are the same, folder:"),
        ("--message_format=avro", "--message_format=avro needs --schema=FILE.avsc, or --schema_registry=URL"),
        ("--message_format=text", "--message_format=text is for models of one column, and this one has 20"),
        ("--schema=/none/there", "--schema /none/there cannot be read"),
        ("--schema_registry=http://127.0.0.1:9", "the schema registry does not answer"),
        ("--columns=city", 'there is no column "city"'),
        (
            "--runner=SparkRunner",
            "SparkRunner cannot run a stream: Beam's portable Spark runner runs batch pipelines only",
        ),
        ("--max_batch_row=9", "unknown option --max_batch_row; did you mean --max_batch_rows?"),
        ("--form=latest", "unknown option --form; did you mean --from?"),
        ("--output_formt=csv", "unknown option --output_formt; see --help"),  # an option of score alone
        ("--model=/none/there", "/none/there"),
    ],
)
def test_one_line(
    plain: ModelDir, folders: Folders, capsys: pytest.CaptureFixture[str], given: str, reason: str
) -> None:
    given = given.replace("IN", str(folders.input))
    flag = given.partition("=")[0]
    arguments = [each for each in folders.arguments(plain.path, "--stop_after=3") if not each.startswith(f"{flag}=")]
    assert reason in _refused([*arguments, given], capsys)
    assert folders.records("out") == []


def test_a_schema_that_does_not_fit_the_model(
    plain: ModelDir, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = folders.root / "schema.json"
    schema.write_text('{"f0": "float64"}')
    arguments = folders.arguments(plain.path, f"--schema={schema}", "--stop_after=3")
    assert 'column "f1" is missing; the model input' in _refused(arguments, capsys)


def test_a_port_that_is_in_use(plain: ModelDir, folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = _refused(folders.arguments(plain.path, f"--metrics_port={port}"), capsys)
    assert line == f"--metrics_port {port} is in use on this machine; choose another"


def test_required_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert _refused([], capsys) == "the following arguments are required: --input, --model, --output, --dead_letters"


def test_help_needs_neither_torch_nor_beam() -> None:
    code = (
        "import sys\nfrom pipelines.stream import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'apache_beam', 'pyarrow'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for flag in ("--input", "--dead_letters", "--max_batch_delay", "--stop_after", "--metrics_port", "--runner"):
        assert flag in found.stdout
