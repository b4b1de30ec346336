"""Beam's S3 client is replaced for as long as somebody uses S3, and no longer."""

import subprocess
import sys

import pytest

from handlers.model.stores import SharesS3, shared_s3

boto3_client = pytest.importorskip("apache_beam.io.aws.clients.s3.boto3_client")
messages = pytest.importorskip("apache_beam.io.aws.clients.s3.messages")


def test_contexts_that_overlap() -> None:
    own = boto3_client.Client
    first, second, work = shared_s3(), shared_s3(), SharesS3()
    first.__enter__()
    ours = boto3_client.Client
    assert ours is not own
    assert str(messages.S3ClientError("no such key", 404)) == "no such key"
    second.__enter__()
    first.__exit__(None, None, None)
    work.setup()
    second.__exit__(None, None, None)
    assert boto3_client.Client is ours
    work.teardown()
    assert boto3_client.Client is own
    work.teardown()
    SharesS3().teardown()
    with shared_s3():
        assert boto3_client.Client is not own
    assert boto3_client.Client is own
    assert str(messages.S3ClientError("no such key", 404)) != "no such key"


def test_one_client_for_each_set_of_options() -> None:
    options = {"s3_access_key_id": "a", "s3_secret_access_key": "b", "s3_region_name": "eu-west-1"}
    with shared_s3():
        one, same = boto3_client.Client(options), boto3_client.Client(options)
        other = boto3_client.Client(options | {"s3_region_name": "eu-west-2"})
    assert one.client is same.client
    assert one.client is not other.client


def test_imports_change_nothing() -> None:
    program = (
        "from apache_beam.io.aws.clients.s3 import boto3_client\n"
        "import pipelines.score, pipelines.jobs.scoring, transforms.sinks.write, transforms.sources.files\n"
        "assert boto3_client.Client.__module__ == boto3_client.__name__\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
