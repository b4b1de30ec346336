"""Which Java is found, and which is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from spark_parts import FakeJava, make_fake_java

from handlers.errors import UsageError
from pipelines.spark import java
from pipelines.spark.java import Java, find_java


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJava:
    return make_fake_java(tmp_path, monkeypatch)


class TestJava:
    @pytest.mark.parametrize(
        ("line", "major"),
        [
            ('openjdk version "17.0.15" 2025-04-15', 17),
            ('java version "11.0.23" 2024-04-16 LTS', 11),
            ('openjdk version "17-ea"', 17),
        ],
    )
    def test_supported(self, fake_java: FakeJava, line: str, major: int) -> None:
        script = fake_java(line)
        found = find_java()
        assert (found.path, found.major) == (str(script), major)

    @pytest.mark.parametrize(
        ("line", "version"),
        [('openjdk version "1.8.0_402"', "Java 1.8.0_402"), ('openjdk version "21.0.2" 2024-01-16', "Java 21.0.2")],
    )
    def test_others_are_refused(self, fake_java: FakeJava, line: str, version: str) -> None:
        fake_java(line)
        with pytest.raises(UsageError, match=rf"{version}, but .* 11 and 17; install Java 17"):
            find_java()

    def test_major_of_the_old_scheme(self) -> None:
        assert [Java("java", version).major for version in ("1.8.0_402", "9", "21.0.2")] == [8, 9, 21]

    def test_none_on_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        with pytest.raises(UsageError, match=r"no java on PATH.*install Java 17"):
            find_java()

    def test_java_home_wins_over_path(self, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
        home = fake_java('openjdk version "11.0.1"').parents[1]
        monkeypatch.setenv("PATH", "/nowhere:/bin")
        monkeypatch.setenv("JAVA_HOME", str(home))
        assert find_java().major == 11
        monkeypatch.setenv("JAVA_HOME", str(home / "gone"))
        with pytest.raises(UsageError, match=r"JAVA_HOME is .*/gone"):
            find_java()

    def test_launcher_wins_over_java_home(self, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
        script = fake_java('openjdk version "11.0.1"')
        monkeypatch.setenv("JAVA_HOME", "/nowhere")
        assert find_java(str(script)).path == str(script)
        with pytest.raises(UsageError, match="there is no java at --job_server_java_launcher=/nowhere/java"):
            find_java("/nowhere/java")

    def test_java_that_tells_no_version(self, fake_java: FakeJava) -> None:
        fake_java("The operation could not be completed. Unable to locate a Java Runtime.", "exit 1")
        with pytest.raises(UsageError, match="Unable to locate a Java Runtime"):
            find_java()

    def test_java_that_hangs(self, fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(java, "_SECONDS", 0.5)
        fake_java("thinking", "exec sleep 60")
        begin = time.monotonic()
        with pytest.raises(UsageError, match="did not end"):
            find_java()
        assert time.monotonic() - begin < 10
