"""Queries a standalone Spark master before a submission.

Its own port, in its own protocol, shows whether it is running. Its Spark version, workers and cores are only on its web
page, which may be on another port or switched off: unknown values are None.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from handlers.errors import UsageError
from pipelines.command.hosts import is_loopback
from pipelines.spark.pages import read_page

SECONDS = 4.0  # for a connection, and again for each answer

# Where 8080 is taken, Spark puts its page on the next free port.
_UI_PORTS = range(8080, 8084)
_STREAM_REQUEST, _NO_SUCH_FILE = 6, b"/files/torchbeam"
# A message is its own length in 8 bytes, its type in one, and the rest.
_TYPES, _MESSAGE_BYTES = range(12), range(10, 1 << 20)


@dataclass(frozen=True)
class Worker:
    """The free resources of a live worker: cores, and memory in MiB."""

    cores_free: int
    memory_free: int


@dataclass(frozen=True)
class Master:
    """A standalone master that responds.

    Attributes:
        url: the URL as it was given.
        ui: the URL of its web page; None if it was not found, and then nothing below is known.
        version: its Spark version, such as `3.5.7`.
        cores: the cores of its workers.
        workers: the live workers.
        applications: the names of the applications that run.
    """

    url: str
    ui: str | None = None
    version: str | None = None
    cores: int | None = None
    workers: tuple[Worker, ...] = ()
    applications: tuple[str, ...] = ()


def is_standalone(url: str) -> bool:
    """Whether `url` is that of a standalone master."""
    return url.startswith("spark://")


def addresses(url: str) -> list[tuple[str, int]]:
    """Host and port of each master in `spark://host:port[,host:port…]`; raises `UsageError` for an invalid URL."""
    found = []
    for part in url.removeprefix("spark://").split(","):
        match = re.fullmatch(r"\[?([^\s/@\[\]]+?)\]?:(\d{1,5})", part)
        if not is_standalone(url) or match is None or not 0 < int(match.group(2)) < 65536:
            raise UsageError(f'--spark_master_url "{url}" must be spark://host:port, usually with port 7077')
        found.append((match.group(1), int(match.group(2))))
    return found


def on_loopback(url: str) -> bool:
    """Whether `url` is a standalone master that only workers on this machine can reach."""
    return is_standalone(url) and all(is_loopback(host) for host, _ in addresses(url))


def ask_master(url: str, ui: str | None = None) -> Master:
    """Queries a standalone master; takes a few seconds at most.

    Args:
        url: `spark://host:port`, or several separated by commas if there are standby masters.
        ui: the URL of its web page, if given; otherwise the usual ports are tried.

    Raises:
        UsageError: if none of the masters responds, or if `ui` is not their web page.
    """
    hosts = addresses(url)
    with ThreadPoolExecutor(len(hosts)) as pool:
        problems = list(pool.map(lambda address: _problem(*address), hosts))
    if None not in problems:
        host, port = hosts[0]
        raise UsageError(
            f"the Spark master {url} cannot be used: {host}:{port} {problems[0]}; start it "
            "(sbin/start-master.sh), or check host, port and firewall"
        )
    up = [address for address, problem in zip(hosts, problems, strict=True) if problem is None]
    pages = [_page(ui)] if ui else _usual_pages(host for host, _ in up)
    ports = {port for _, port in up}
    with ThreadPoolExecutor(len(pages)) as pool:
        asked = list(pool.map(lambda page: (page, _state(page, ports)), pages))
    found = [(page, state) for page, state in asked if state is not None]
    if not found:
        if ui:
            raise UsageError(
                f"--spark_master_ui {ui} is not the web page of the Spark master {url}; check host and port"
            )
        return Master(url)
    # Only the active master knows the workers, not the standby ones.
    page, state = next((each for each in found if each[1].get("status") == "ALIVE"), found[0])
    return Master(
        url,
        page,
        _version(page),
        int(state["cores"]),
        tuple(
            Worker(int(each["coresfree"]), int(each["memoryfree"]))
            for each in state["workers"]
            if each.get("state") == "ALIVE"
        ),
        tuple(str(app.get("name")) for app in state.get("activeapps", ())),
    )


def _problem(host: str, port: int) -> str | None:
    """Why a port cannot be used as a Spark master; None if it can.

    It requests a file that does not exist, which the master does not even log.
    """
    body = struct.pack(">bi", _STREAM_REQUEST, len(_NO_SUCH_FILE)) + _NO_SUCH_FILE
    try:
        with socket.create_connection((host, port), SECONDS) as connection:
            connection.sendall(struct.pack(">q", 8 + len(body)) + body)
            answer = connection.recv(1 << 12)
    except TimeoutError:
        return f"does not answer within {SECONDS:.0f} seconds"
    except (socket.gaierror, UnicodeError):
        return "is not a known host"
    except OSError as error:
        return f"refuses connections ({error.strerror or error})"
    if answer.startswith(b"HTTP"):
        return "is a web page, and the port of a master is usually 7077"
    # A master that requires a secret closes the connection without a response.
    return None if not answer or _is_message(answer) else "does not speak Spark's protocol; it is something else"


def _is_message(answer: bytes) -> bool:
    if len(answer) < _MESSAGE_BYTES.start:
        return False
    length, kind = struct.unpack_from(">qb", answer)
    return length in _MESSAGE_BYTES and kind in _TYPES


def _page(ui: str) -> str:
    return (ui if "://" in ui else f"http://{ui}").rstrip("/")


def _usual_pages(hosts: Iterable[str]) -> list[str]:
    ports = [os.environ.get("SPARK_MASTER_WEBUI_PORT"), *_UI_PORTS]
    named = [f"[{host}]" if ":" in host else host for host in hosts]
    return [f"http://{host}:{port}" for host in named for port in ports if port]


def _state(page: str, ports: set[int]) -> dict[str, Any] | None:
    """The state on the web page of a master; None if it is not a master on one of `ports`."""
    try:
        state = json.loads(read_page(f"{page}/json/", SECONDS))
        # The host may have other names; on this page's machine only one master has the port.
        (address, *_) = addresses(state["url"])
        return state if address[1] in ports and {"cores", "workers"} <= state.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return None


def _version(page: str) -> str | None:
    """The Spark version, which only the HTML page shows."""
    try:
        found = re.search(r'class="version"[^>]*>\s*(\d[^<\s]*)', read_page(page, SECONDS))
    except (OSError, ValueError):
        return None
    return found.group(1) if found else None
