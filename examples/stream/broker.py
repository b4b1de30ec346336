"""A real Kafka broker (KRaft, one node) on free ports of this machine, which ends with this process at the latest.

    with broker(Path("/tmp/kafka")) as kafka:
        kafka.create("numbers", partitions=4)
        print(kafka.address)

`make kafka` fetches its jars; it needs Java 17 and, once, Maven.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from pipelines.command.built import built
from pipelines.command.supervisor import GRACE_SECONDS, supervised_command

POM = Path(__file__).with_name("pom.xml")
START_SECONDS = 120
LARGEST_MESSAGE = 32 << 20


class NoBrokerError(Exception):
    """There is no Java, or there are no jars; the message says what to do."""


class BrokerError(Exception):
    """The broker does not start."""


def find_java() -> str:
    """The java executable of JAVA_HOME or PATH."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which(str(Path(home, "bin", "java"))) if home else shutil.which("java")
    if not found:
        raise NoBrokerError("there is no java; a Kafka broker needs Java 17 (apt-get install openjdk-17-jdk-headless)")
    return found


def find_jars() -> Path:
    """The folder of the broker's jars, as `make kafka` leaves it."""
    version = re.findall(r"<kafka.version>(.+)</kafka.version>", POM.read_text())[0]
    jars = built("kafka") / version
    pom = jars / "pom.xml"
    if not pom.is_file() or pom.read_bytes() != POM.read_bytes():
        raise NoBrokerError("the jars of the Kafka broker are not there; `make kafka` fetches them (Maven and Java 17)")
    return jars


@dataclass
class Broker:
    """A broker: its process, and the addresses of its listeners.

    Attributes:
        folder: everything that it writes.
        ports: of its listeners by name: plain, sasl, tls where there is a certificate, controller.
        users: passwords by user, for the listeners sasl (without TLS) and tls.
        certificate: a PEM file with the private key and the certificate of the listener tls; None for no such listener.
    """

    folder: Path
    ports: dict[str, int]
    users: Mapping[str, str] = field(default_factory=dict)
    certificate: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port of the listener for everyone."""
        return f"127.0.0.1:{self.ports['plain']}"

    @property
    def sasl_address(self) -> str:
        """Host and port of the listener with passwords (SASL PLAIN)."""
        return f"127.0.0.1:{self.ports['sasl']}"

    @property
    def tls_address(self) -> str:
        """Host and port of the listener with passwords and TLS."""
        return f"127.0.0.1:{self.ports['tls']}"

    def start(self) -> None:
        """Starts the broker on the storage that is there, and waits until it answers."""
        log = self.folder / "broker.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                supervised_command([*_java(300), "kafka.Kafka", str(self.folder / "server.properties")]),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        end = time.monotonic() + START_SECONDS
        while True:
            with suppress(KafkaException):
                self.admin().list_topics(timeout=1)
                return
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise BrokerError(f"the Kafka broker has not started: {log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Ends the broker at once (SIGKILL), as a crash does; `start` starts it again with what it has stored."""
        if self._process is None:
            return
        for child in _children(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.terminate()  # where the system does not tell the children
        self._process.wait(GRACE_SECONDS + 10)
        self._process = None

    def admin(self) -> AdminClient:
        """A client that may do everything."""
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def cpu_seconds(self) -> float:
        """CPU time that its process has taken; Linux only."""
        assert self._process is not None  # noqa: S101 - it runs
        (child,) = _children(self._process.pid)
        user, system = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def create(self, *topics: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Creates topics with a configuration, and waits until they are there."""
        admin = self.admin()
        for created in admin.create_topics(
            [NewTopic(topic, partitions, 1, config=dict(config or {})) for topic in topics]
        ).values():
            created.result(START_SECONDS)
        while not set(topics) <= set(admin.list_topics(timeout=START_SECONDS).topics):
            time.sleep(0.05)


@contextmanager
def broker(folder: Path, users: Mapping[str, str] | None = None, certificate: Path | None = None) -> Iterator[Broker]:
    """A running broker whose files are in `folder`, which is made, and removed at the end.

    Args:
        folder: a folder that is not there yet, or is empty.
        users: passwords by user.
        certificate: a PEM file with a private key and a certificate.

    Raises:
        NoBrokerError: if there is no Java, or there are no jars.
        BrokerError: if it does not start.
    """
    names = ["plain", "sasl", "controller", *(["tls"] if certificate else [])]
    made = Broker(folder, _free_ports(names), users or {}, certificate)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        properties = folder / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in _properties(made).items()))
        properties.chmod(0o600)
        identifier = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={identifier}", "--config", str(properties)]
        formatted = subprocess.run([*_java(64), *tool], capture_output=True, text=True, check=False)
        if formatted.returncode:
            raise BrokerError(f"the storage of the Kafka broker: {formatted.stdout}{formatted.stderr}")
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _java(heap_mb: int) -> list[str]:
    return [find_java(), f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{find_jars()}/*"]


def _children(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def _free_ports(names: list[str]) -> dict[str, int]:
    sockets = {name: socket.socket() for name in names}
    try:
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {name: int(each.getsockname()[1]) for name, each in sockets.items()}
    finally:
        for each in sockets.values():
            each.close()


def _properties(made: Broker) -> dict[str, object]:
    ports = made.ports
    protocols = {"plain": "PLAINTEXT", "sasl": "SASL_PLAINTEXT", "tls": "SASL_SSL", "controller": "PLAINTEXT"}
    listeners = {name: f"{name.upper()}://127.0.0.1:{port}" for name, port in ports.items()}
    users = "".join(f' user_{user}="{password}"' for user, password in made.users.items())
    login = f"org.apache.kafka.common.security.plain.PlainLoginModule required{users};"
    properties: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{ports['controller']}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAIN",
        "listeners": ",".join(listeners.values()),
        "advertised.listeners": ",".join(url for name, url in listeners.items() if name != "controller"),
        "listener.security.protocol.map": ",".join(f"{name.upper()}:{protocols[name]}" for name in ports),
        "sasl.enabled.mechanisms": "PLAIN",
        "log.dirs": made.folder / "data",
        "message.max.bytes": LARGEST_MESSAGE,
        "replica.fetch.max.bytes": LARGEST_MESSAGE,
        "log.index.size.max.bytes": 1 << 20,
        "log.retention.ms": -1,  # it counts from the event time of a message, which may be years ago
        # One node, which few clients use for a short time.
        **{f"{topic}.replication.factor": 1 for topic in ("offsets.topic", "transaction.state.log")},
        "transaction.state.log.min.isr": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # A broker that was killed may register again only when its session has expired.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
    }
    for name in ("sasl", "tls"):
        if name in ports:
            properties[f"listener.name.{name}.plain.sasl.jaas.config"] = login
    if made.certificate:
        properties |= {
            "listener.name.tls.ssl.keystore.type": "PEM",
            "listener.name.tls.ssl.keystore.location": made.certificate,
        }
    return properties
