"""Secrets are masked wherever they stand in a text; what only looks like them stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers import redact as module
from handlers.errors import one_line
from handlers.redact import redact, remember

SECRET = "Zq8/w+Xy12"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", set())


@pytest.mark.parametrize(
    "text",
    [
        "--s3_secret_access_key={}",
        "--s3_secret_access_key {} --x=1",
        "['--s3_session_token', '{}']",
        "java -Dspark.hadoop.fs.s3a.secret.key={} -jar x.jar",
        "-Dspark.hadoop.fs.s3a.access.key={}",
        "-Dspark.hadoop.fs.azure.account.key.me.dfs.core.windows.net={}",
        "-Djavax.net.ssl.trustStorePassword={}",
        '{{"password": "{}", "user": "me"}}',
        "{{'clientSecret': '{}'}}",
        'sasl.jaas.config=PlainLoginModule required username="me" password="{}";',
        "https://me:{}@example.org/x",
        "postgresql://me:{}@db:5432/x",
        "https://host/x?token={}&b=1",
        "https://host/x?X-Amz-Signature={}",
        "https://host/x?sv=1&sig={}",
        "Authorization: Bearer {}",
        "authorization: Basic {}",
        "got Bearer {} back",
        "api_key={}",
        "accessToken={}",
        "db_password: {}",
        "HF_TOKEN={}",
    ],
)
def test_a_secret_after_its_name(text: str) -> None:
    masked = redact(text.format(SECRET.replace("/", "%2F") if "://me:" in text else SECRET))
    assert "w+Xy12" not in masked
    assert "***" in masked
    assert text.partition("{")[0].rstrip("{'\"")[:8] in masked, "the name stays"


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "hf_" + "Ab1" * 10,
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
    ],
)
def test_a_secret_by_its_form(text: str) -> None:
    assert redact(f"the key {text} is wrong") == "the key *** is wrong"


def test_a_private_key() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKC\nAQEA7bq\n-----END RSA PRIVATE KEY-----"
    assert "MIIE" not in redact(f'x = "{key}"')
    assert "AQEA" not in redact(key.replace("\n", " "))


@pytest.mark.parametrize(
    "text",
    [
        "--output=gs://bucket/scored --columns=*",
        "TOKENIZERS_PARALLELISM=false max_tokens=512 tokenizer=bert",
        "https://host:8080/x?project=p&q=1",
        "hdfs://user@namenode/data",
        "-Dspark.executor.memory=2g -Dspark.master=local[2]",
        'column "token" holds null; the model input "x" needs float32',
        "unexpected token: }",
        "env_vars sets 'HF_TOKEN', which is not among them",
        "set GOOGLE_APPLICATION_CREDENTIALS to a file",
        "loaded 12 secrets and 3 passwords",
        "key=7 is there twice",
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert redact(text) == text


def test_remembered_values_are_found_without_their_names() -> None:
    remember(
        [
            "--s3_secret_access_key=abc def,ghi",
            "--job_server_jvm_properties=-Dx.password=p@ss'w\"ord",
            "--limit=secret",
        ],
        {"MY_API_KEY": "value-of-key", "HOME": "/root", "DB": "pg://me:hidden99@h/x", "A_TOKEN": "short"},
    )
    text = "abc def,ghi | p@ss'w\"ord | value-of-key | hidden99 | short | /root | abc%20def%2Cghi"
    assert redact(text) == "*** | *** | *** | *** | short | /root | ***"


def test_errors_hold_none() -> None:
    assert one_line(ValueError("cannot open\nhttps://me:pw123456@host/x?token=abc")) == (
        "cannot open https://***@host/x?token=***"
    )


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=80))
def test_any_text(text: str) -> None:
    masked = redact(text)
    assert redact(masked).replace("***", "") in masked.replace("***", "") or "***" in masked
    assert redact(f"x --db_password=hunter2hunter2 {text}").startswith("x --db_password=***")
