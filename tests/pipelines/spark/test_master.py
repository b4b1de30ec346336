"""What is found out about a Spark master, asked of real ones and of ports that are none."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from spark_parts import free_port, lonely_master, options, spark_version

from handlers.errors import UsageError
from pipelines.spark.checks import check_cores, check_spark
from pipelines.spark.master import Master, addresses, ask_master


class TestNoMaster:
    def test_nobody_listens(self) -> None:
        url = f"spark://127.0.0.1:{free_port()}"
        with pytest.raises(UsageError, match=rf"{url} cannot be used.*refuses connections.*start-master"):
            ask_master(url)

    def test_port_that_never_answers_ends_in_seconds(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            begin = time.monotonic()
            with pytest.raises(UsageError, match="does not answer within 4 seconds"):
                ask_master(f"spark://127.0.0.1:{silent.getsockname()[1]}")
            assert time.monotonic() - begin < 10

    def test_port_of_something_else(self) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()

            def greet() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
                    connection.recv(1 << 12)

            threading.Thread(target=greet, daemon=True).start()
            with pytest.raises(UsageError, match="does not speak Spark's protocol"):
                ask_master(f"spark://127.0.0.1:{server.getsockname()[1]}")

    def test_unknown_host(self) -> None:
        with pytest.raises(UsageError, match="is not a known host"):
            ask_master("spark://no-such-host.invalid:7077")

    @pytest.mark.parametrize(
        "url", ["spark://host", "spark://", "spark://host:port", "spark://host:99999", "host:7077"]
    )
    def test_malformed_url(self, url: str) -> None:
        with pytest.raises(UsageError, match=r"must be spark://host:port"):
            ask_master(url)

    def test_addresses(self) -> None:
        assert addresses("spark://a:1,b.c:2,[::1]:3") == [("a", 1), ("b.c", 2), ("::1", 3)]


class TestMaster:
    def test_without_workers(self, master: tuple[str, str]) -> None:
        url, page = master
        found = ask_master(url, page)
        assert found == Master(url, page, spark_version(), cores=0)
        with pytest.raises(UsageError, match=f"{url} has no workers.*start-worker.sh {url}"):
            check_cores(found)
        with pytest.raises(UsageError, match="has no workers"):
            check_spark(options(url), page)

    def test_page_is_found_by_itself(self, master: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        url, page = master
        monkeypatch.setenv("SPARK_MASTER_WEBUI_PORT", page.rpartition(":")[2])
        assert ask_master(url).ui == page

    def test_page_without_scheme(self, master: tuple[str, str]) -> None:
        url, page = master
        assert ask_master(url, page.removeprefix("http://")).version == spark_version()

    def test_page_that_is_not_found_leaves_all_unknown(self, master: tuple[str, str]) -> None:
        url, _ = master
        found = ask_master(url)
        assert found == Master(url)
        assert "not known" in check_cores(found)

    @pytest.mark.parametrize("page", ["127.0.0.1:1", "http://127.0.0.1:{port}", "file:///etc/passwd"])
    def test_page_that_is_none(self, master: tuple[str, str], page: str) -> None:
        url, _ = master
        with pytest.raises(UsageError, match=r"--spark_master_ui .* is not the web page of the Spark master"):
            ask_master(url, page.format(port=url.rpartition(":")[2]))

    def test_port_of_the_page_in_place_of_the_masters(self, master: tuple[str, str]) -> None:
        _, page = master
        with pytest.raises(UsageError, match="is a web page"):
            ask_master(page.replace("http", "spark"))

    def test_one_of_several_answers(self, master: tuple[str, str]) -> None:
        url, page = master
        several = f"spark://127.0.0.1:{free_port()},{url.removeprefix('spark://')}"
        assert ask_master(several, page).version == spark_version()

    def test_stopped_master(self, tmp_path: Path) -> None:
        """A process that is there and does not run accepts connections, and must not be waited for."""
        with lonely_master(tmp_path) as (url, page, process):
            os.kill(process, signal.SIGSTOP)
            begin = time.monotonic()
            with pytest.raises(UsageError, match="does not answer within"):
                ask_master(url, page)
            assert time.monotonic() - begin < 10
