"""`torchbeam stream` on folders, in this process: the predictions and dead letters of `torchbeam score`, message by message."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from poison_rows import POSTPROCESS_REFUSES
from poisoned_table import Table
from stream_folders import COLUMNS, Folders, put, rows, save_model

from handlers import ModelDir
from pipelines import score, stream
from pipelines.stream import main

pytestmark = pytest.mark.slow(20)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelDir:
    return save_model(tmp_path_factory.mktemp("stream") / "model")


def test_as_a_plain_model_answers(
    plain: ModelDir, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folders = Folders(tmp_path)
    given = rows(1000)
    put(folders.input, "a.jsonl", [*given[:600], b"nope"])
    put(folders.input, "b.jsonl", [*given[600:], {**given[0], "f3": "x"}, {**given[0], "f4": None}])
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"id": "string", **dict.fromkeys(COLUMNS, "float64")}))
    others = [f"--schema={schema}", "--columns=id", "--probabilities", "--stop_after=1003", "--max_batch_rows=256"]
    assert main(folders.arguments(plain.path, *others)) == 0
    out = capfd.readouterr().out
    found = folders.records("out")
    assert [row["id"] for row in found] == [row["id"] for row in given]
    x = torch.tensor([[row[name] for name in COLUMNS] for row in given], dtype=torch.float32)
    wanted = plain.load().module(x).softmax(1).tolist()
    got = [[row["probability_good"], row["probability_bad"]] for row in found]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), atol=1e-6, rtol=0)
    assert {row["model_version"] for row in found} == {plain.version}
    assert [(row["error"]["stage"], row["error"]["type"]) for row in folders.records("dead")] == [
        ("decode", "JSONDecodeError"),
        ("decode", "ValueError"),
        ("encode", "NullValue"),
    ]
    assert out.splitlines() == [
        "1,003 messages read, 1,000 scored, 0 dropped, 3 dead letters",
        *("  decode/JSONDecodeError  1", "  decode/ValueError  1", "  encode/NullValue  1"),
    ]
    windows = [each.args for each in caplog.records if each.name == "torchbeam.stream"]
    assert sum(int(str(read).replace(",", "")) for _, read, *_ in windows) == 1003  # type: ignore[misc]
    assert sum(each["read"] for each in folders.records("accounts")) == 1003


def test_as_score_scores(model: Path, poisoned: Table, tmp_path: Path) -> None:
    ids = {*range(2000), *sorted(poisoned.poison)[:60], *sorted(poisoned.dropped)[:20]}
    given = [row for row in poisoned.table.to_pylist() if row["id"] in ids]
    lines = [json.dumps(row | {"when": row["when"].isoformat()}).replace("Infinity", "1e999").encode() for row in given]
    folders = Folders(tmp_path)
    put(folders.input, "rows.jsonl", lines)
    schema = {
        "id": "int64",
        "when": "timestamp[us]",
        "amount": "string",
        "vec": "list<float64>",
        "code": "int64",
        **dict.fromkeys(["f_0", "f_1", "f_2", "f_3"], "float64"),
        "note": "string",
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    others = [
        f"--schema={tmp_path / 'schema.json'}",
        f"--sample={poisoned.folder}/part-0.parquet",
        f"--stop_after={len(given)}",
        "--max_batch_rows=700",
    ]
    assert main(folders.arguments(model, *others)) == 0
    scored = tmp_path / "scored"
    assert (
        score.main([f"--input={folders.input}", f"--model={model}", f"--output={scored}", "--output_format=jsonl"]) == 0
    )

    def by_id(folder: Path) -> dict[int, dict]:
        found = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
        for row in found:
            if (raw := row.get("dead_letter", {}).get("raw")) is not None:  # a number that is too large
                row["id"] = json.loads(raw)["id"]
        assert len({row["id"] for row in found}) == len(found)
        return {row["id"]: row for row in found}

    wanted, got = by_id(scored / "predictions"), by_id(tmp_path / "out")
    assert got.keys() == wanted.keys()
    for number, row in wanted.items():
        answer = got[number]
        for name in ("predicted_class", "model_version", "amount", "vec", "code", "note", "f_1"):
            assert answer[name] == row[name]
        assert answer["confidence"] == pytest.approx(row["confidence"], abs=1e-6)
    letters = by_id(scored / "dead_letters")
    dead = {json.loads(row["value"])["id"]: row["error"] for row in folders.records("dead")}
    assert dead.keys() == letters.keys() == {row["id"] for row in given if row["id"] in poisoned.poison}
    for number, error in dead.items():
        letter = letters[number]["dead_letter"]
        stage = {"read": "decode"}.get(letter["stage"], letter["stage"])
        assert (error["stage"], error["type"]) == (stage, letter["type"])
    dropped = sum(each["dropped"] for each in folders.records("accounts"))
    assert dropped == sum(row["id"] in poisoned.dropped for row in given) > 0
    assert POSTPROCESS_REFUSES in {json.loads(row["value"])["code"] for row in folders.records("dead")}


def test_metrics(plain: ModelDir, tmp_path: Path, free_port: int) -> None:
    folders = Folders(tmp_path)
    put(folders.input, "a.jsonl", [*rows(10), b"nope"])
    assert main(folders.arguments(plain.path, "--stop_after=11", f"--metrics_port={free_port}")) == 0
    with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    of = f'{{partition="0",source="{folders.input}"}}'
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    for what, count in (("read", 11), ("scored", 10), ("dropped", 0), ("dead", 1)):
        assert float(values[f"torchbeam_messages_{what}_total{of}"]) == count
    assert float(values['torchbeam_dead_letters_total{stage="decode",type="JSONDecodeError"}']) == 1
    assert float(values[f'torchbeam_model_info{{model_version="{plain.version}"}}']) == 1
    assert float(values["torchbeam_delay_seconds_count"]) == 11
    assert float(values['torchbeam_delay_seconds_bucket{le="+Inf"}']) == 11
    assert float(values["torchbeam_batch_rows_sum"]) == 11


def test_nothing_could_be_scored(plain: ModelDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders = Folders(tmp_path)
    put(folders.input, "a.jsonl", [b"nope", b"no"])
    assert main(folders.arguments(plain.path, "--stop_after=2")) == 3
    assert (
        "torchbeam stream: none of the 2 messages could be scored; the first reason is decode/JSONDecodeError"
        in capfd.readouterr().err.splitlines()
    )


def test_the_description_says_all_exit_codes() -> None:
    assert all(f"{code} " in stream.COMMAND.exit_codes for code in (0, 1, 2, 3, 130))
