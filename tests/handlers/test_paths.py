"""What is remote, by the path alone, and as Beam has it."""

import pytest
from apache_beam.io.filesystems import FileSystems

from handlers.paths import is_remote, scheme_of


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("gs://bucket/x", "gs"),
        ("s3://bucket", "s3"),
        (" gs://bucket/x", "gs"),
        ("hdfs+x.y-z://host/x", "hdfs+x.y-z"),
        ("/data/x.csv", None),
        ("data/odd://name.csv", None),
        ("./gs://bucket", None),
        ("://x", None),
        ("a:b.csv", None),
        ("bigquery:p.d.t", None),
        ("", None),
    ],
)
def test_scheme(path: str, scheme: str | None) -> None:
    assert scheme_of(path) == scheme == FileSystems.get_scheme(path)
    assert is_remote(path) == (scheme is not None)
