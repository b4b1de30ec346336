"""Twelve secrets, planted in the arguments and the environment, and every output of the commands searched for them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]

SECRETS = {
    "s3 access key": "AKIAQ7EXAMPLE0PLANTD",
    "s3 secret": "p1/antedS3+Secret",
    "s3 session": "p2antedSessionToken",
    "s3a secret of Spark": "p3antedS3aSecret",
    "s3a access of Spark": "p4antedS3aAccess",
    "account key of Azure": "p5antedAzureKey==",
    "key store password": "p6anted,Pass;word",
    "jaas password": "p7antedJaas",
    "password in a URL": "p8antedUrlPassword",
    "token in a URL": "p9antedUrlToken",
    "token of the environment": "p10antedHubToken",
    "password of the environment": "p11antedDbPassword",
}
S = SECRETS
ARGUMENTS = [
    f"--s3_access_key_id={S['s3 access key']}",
    f"--s3_secret_access_key={S['s3 secret']}",
    *("--s3_session_token", S["s3 session"]),
    f"--job_server_jvm_properties=-Dspark.hadoop.fs.s3a.secret.key={S['s3a secret of Spark']}",
    f"--job_server_jvm_properties=-Dspark.hadoop.fs.s3a.access.key={S['s3a access of Spark']}",
    f"--job_server_jvm_properties=-Dspark.hadoop.fs.azure.account.key.me.net={S['account key of Azure']}",
    f"--job_server_jvm_properties=-Djavax.net.ssl.keyStorePassword={S['key store password']}",
    f'--job_server_jvm_properties=-Dk.sasl.jaas.config=Login required password="{S["jaas password"]}";',
    f"--job_server_jvm_properties=-Dspark.jars=https://me:{S['password in a URL']}@host/x.jar",
    f"--job_server_jvm_properties=-Dspark.extra=https://host/y?token={S['token in a URL']}&b=1",
]
ENVIRONMENT = {"HF_TOKEN": S["token of the environment"], "DB_PASSWORD": S["password of the environment"]}

TELLTALE = '''
"""User code that tells what it should not, in a log line, in the dead letter of a row and on its own."""
import logging, os, sys

def tell(row: dict) -> dict:
    everything = " ".join([*sys.argv, *os.environ.values()])
    logging.getLogger("user").warning("the process has %s", everything)
    if row["a"] == 2.0:
        raise ValueError(everything)
    return row

def fail(row: dict) -> dict:
    raise ValueError(" ".join([*sys.argv, *os.environ.values()]))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table, a model, user code that tells all it knows, a java that tells its arguments and a jar."""
    (tmp_path / "telltale.py").write_text(TELLTALE)
    pq.write_table(pa.table({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}), tmp_path / "in.parquet")
    (tmp_path / "m" / "code").mkdir(parents=True)
    (tmp_path / "m" / "code" / "double.py").write_text("def load(folder): return lambda x: x * 2\n")
    (tmp_path / "m" / "model.yaml").write_text("name: m\nloader: double:load\ninputs: [{name: x, columns: [a, b]}]\n")
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -version ]; then echo \'openjdk version "17.0.15"\' >&2; exit 0; fi\n'
        'echo "INFO the settings are $*"; env; echo "Exception: invalid settings $*"; exit 1\n'
    )
    java.chmod(0o755)
    with zipfile.ZipFile(tmp_path / "server.jar", "w") as jar:
        jar.writestr("org/apache/beam/runners/spark/SparkJobServerDriver.class", b"")
    return tmp_path


def outputs(folder: Path, command: str, *more: str) -> tuple[int, str]:
    """The exit code, and all that is printed or written."""
    given = [f"--input={folder}/in.parquet", f"--model={folder}/m", f"--output={folder}/out"]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{folder}", "JAVA_HOME": str(folder / "jdk")}
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{command}", *given, *ARGUMENTS, *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )
    written = "".join(
        str(pq.read_table(file).to_pylist()) if file.suffix == ".parquet" else file.read_text()
        for file in sorted((folder / "out").rglob("*"))
        if file.is_file()
    )
    return done.returncode, done.stdout + done.stderr + written


def check(text: str) -> None:
    found = [name for name, secret in SECRETS.items() if secret in text]
    assert not found, (found, text[-3000:])
    assert len(SECRETS) == 12


def test_a_run_with_dead_letters(folder: Path) -> None:
    code, text = outputs(folder, "score", "--verbose", "--preprocess=telltale:tell")
    assert code == 0, text
    assert '"rows_dead": 1' in text
    assert "WARNING user: the process has" in text
    assert "telltale:tell: " in text, "the message of the dead letter"
    assert "s3_secret_access_key=***" in text
    check(text)


@pytest.mark.parametrize("verbose", [True, False])
def test_a_run_that_fails(folder: Path, verbose: bool) -> None:
    code, text = outputs(folder, "score", f"--verbose={verbose}".lower(), "--preprocess=telltale:fail")
    assert code == 2
    assert "preprocess fails on each of the first 3 rows" in text
    assert ("Traceback" in text) is verbose
    check(text)


@pytest.mark.parametrize("verbose", [True, False])
def test_the_job_server_of_spark(folder: Path, verbose: bool) -> None:
    """Whose whole command line is logged, and which tells of its settings itself."""
    spark = ("--runner=SparkRunner", f"--spark_job_server_jar={folder}/server.jar", f"--verbose={verbose}".lower())
    code, text = outputs(folder, "score", *spark)
    assert code == 1, text
    assert "the job server ended at its start with exit code 1" in text
    assert ("-Dspark.hadoop.fs.s3a.secret.key=***" in text) or not verbose
    assert ("SparkJobServer" in text or "-jar" in text) or not verbose
    check(text)


@pytest.mark.parametrize("runner", ["FnApiRunner", "SparkRunner"])
def test_the_doctor(folder: Path, runner: str) -> None:
    jar = f"--spark_job_server_jar={folder}/server.jar"
    code, text = outputs(folder, "doctor", "--verbose", f"--runner={runner}", jar, "--preprocess=telltale:fail")
    assert code == 2
    assert "problem  columns        preprocess fails on each" in text
    check(text)


@pytest.mark.parametrize("command", ["score", "doctor"])
def test_wrong_usage_that_echoes_its_arguments(folder: Path, command: str) -> None:
    secret = S["s3 secret"]
    for wrong in (
        f"--s3_secret_acess_key={secret}",
        f"--model_version={secret}",
        f"--no_such={secret}",
        f"--input={secret}",
    ):
        code, text = outputs(folder, command, wrong)
        assert code == 2
        check(text)
    code, text = outputs(
        folder, command, f"--report=https://me:{S['password in a URL']}@h/x?token={S['token in a URL']}"
    )
    assert code == 2
    check(text)
