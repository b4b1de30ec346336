"""A Kafka cluster: its address, the options of its client from a file, and its errors as one line."""

from __future__ import annotations

import difflib
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from handlers.errors import StreamError, UsageError
from handlers.redact import remember

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

T = TypeVar("T")

CHECK_SECONDS = 15.0
_DOWN_SECONDS = 2.0  # that a broker which refuses connections is given to start
_TRY_SECONDS = 1.0
_SAY_EVERY_SECONDS = 60.0
_DEFAULT_PORT = 9092
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")

# Options that decide what is read and what is delivered, or that load code.
_OURS = {
    "group.id": "write --group",
    "auto.offset.reset": "write --from",
    "plugin.library.paths": "it loads code",
    "sasl.jaas.config": "it is an option of Java's client; write sasl.username and sasl.password",
    **dict.fromkeys(
        (
            *("acks", "client.id", "delivery.report.only.error", "enable.auto.commit", "enable.auto.offset.store"),
            *("enable.idempotence", "enable.partition.eof", "go.delivery.reports", "isolation.level", "partitioner"),
            *("group.instance.id", "group.protocol", "request.required.acks", "transactional.id"),
        ),
        "it is set by this command",
    ),
}

_REGISTRY = "schema.registry."  # options of its client, in the same file

log = logging.getLogger("torchbeam.stream")


def client() -> Any:
    """The module `confluent_kafka`; raises `UsageError` that says what to install where it is missing."""
    try:
        import confluent_kafka
    except ImportError:
        raise UsageError("kafka:// needs confluent-kafka; pip install 'torchbeam[stream]'") from None
    return confluent_kafka


def parse_url(url: str, option: str) -> tuple[str, str]:
    """The servers (`host:port`, separated by commas) and the topic of `kafka://host:9092[,host2:9092]/topic`.

    Args:
        url: the URL; a server without a port has 9092.
        option: the option that it is the value of, for the error.

    Raises:
        UsageError: if it is not such a URL.
    """
    servers, _, topic = url.removeprefix("kafka://").partition("/")
    if "@" in servers:
        raise UsageError(f"{option}: user and password belong into the file of --kafka_config, not into the URL")
    matches = [_SERVER.fullmatch(server) for server in servers.split(",")]
    ports = [int(match.group(1) or _DEFAULT_PORT) for match in matches if match]
    if len(ports) < len(matches) or not all(0 < port < 65536 for port in ports):
        raise UsageError(f"{option}={url} is not of the form kafka://HOST:9092[,HOST2:9092]/TOPIC")
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise UsageError(
            f"{option}={url}: {topic or 'nothing'} is not the name of a topic (letters, digits, '.', '_' and '-'); "
            "write kafka://HOST:9092/TOPIC"
        )
    parts = [match.group() if match.group(1) else f"{match.group()}:{_DEFAULT_PORT}" for match in matches if match]
    return ",".join(parts), topic


@dataclass(frozen=True)
class Cluster:
    """A Kafka cluster.

    Attributes:
        servers: `host:port` of some of its brokers, separated by commas.
        config: a file of librdkafka's options, such as those of SASL and TLS; local or in an object store. It is read
            where a client is made, so what is in it does not travel with the pipeline.
    """

    servers: str
    config: str | None = None

    def connect(self, make: Callable[[dict[str, Any]], T], **ours: Any) -> T:
        """A client of this cluster.

        Args:
            make: a class of `confluent_kafka`.
            ours: options, with `_` for `.`; `error_cb` and `on_delivery` are functions.

        Raises:
            UsageError: if the file cannot be read or has an option that the client refuses. Values are not shown.
        """
        functions = {"error_cb", "on_delivery"}
        options = {
            # Its errors come to us through error_cb; its log would go to stderr.
            "log_level": 0,
            "reconnect.backoff.max.ms": 2000,
            "client.id": "torchbeam",
            **self._options(),
            "bootstrap.servers": self.servers,
            **{name if name in functions else name.replace("_", "."): value for name, value in ours.items()},
        }
        try:
            return make(options)
        except (client().KafkaException, ValueError, TypeError) as error:
            # The message may quote a value, which may be a secret.
            named = [name for name in self._options() if name in str(error)]
            what = f"refuses the option {named[0]}" if named else f"refuses the options: {reason_of(error)}"
            if not self.config:
                raise UsageError(f"the client of Kafka {what}") from None
            why = "" if not named else "; there is no such option, or not with this value"
            raise UsageError(f"--kafka_config={self.config}: the client of Kafka {what}{why}") from None

    def _options(self) -> dict[str, str]:
        return read_options(self.config, self.servers) if self.config else {}

    def check_topic(self, topic: str, option: str) -> None:
        """Asks the brokers for the topic.

        Raises:
            UsageError: if no broker answers within seconds, or refuses this user, or there is no such topic.
        """
        errors: list[KafkaError] = []
        admin = self.connect(_admin_client, error_cb=errors.append)
        began = time.monotonic()
        while True:
            try:
                topics = sorted(admin.list_topics(timeout=_TRY_SECONDS).topics)
                break
            except client().KafkaException as error:
                admin.poll(0)
                seconds = time.monotonic() - began
                if final := self._final(errors, down=seconds > _DOWN_SECONDS):
                    raise UsageError(f"{option}: {final}") from None
                if seconds > CHECK_SECONDS:
                    reason = reason_of(errors[-1]) if errors else reason_of(error)
                    raise UsageError(f"{option}: Kafka at {self.servers} does not answer: {reason}") from None
        if topic in topics:
            return
        like = difflib.get_close_matches(topic, [each for each in topics if not each.startswith("__")])
        looks = f"; these look like it: {', '.join(like)}" if like else ""
        raise UsageError(
            f"{option}: Kafka at {self.servers} has no topic {topic} that this user may see{looks}; create it "
            f"(kafka-topics.sh --create --topic {topic}) or write another"
        )

    def _final(self, errors: list[KafkaError], *, down: bool) -> str | None:
        """The line for an error after which more tries are of no use; that no broker is there counts if `down`."""
        codes = client().KafkaError
        first = {error.code(): error for error in reversed(errors)}
        for code in (codes._AUTHENTICATION, codes.SASL_AUTHENTICATION_FAILED):
            if code in first:
                return f"Kafka at {self.servers} refuses the user: {reason_of(first[code])}; see {self._where()}"
        if codes._SSL in first:
            return f"no TLS connection to Kafka at {self.servers}: {reason_of(first[codes._SSL])}; see {self._where()}"
        if down and codes._ALL_BROKERS_DOWN in first:
            why = first.get(codes._RESOLVE) or first.get(codes._TRANSPORT)
            reason = reason_of(why) if why else "it closes the connection"
            # A listener that wants a password or TLS closes a plain connection, one without TLS closes a TLS connection;
            # the client reports that only sometimes.
            hint = ""
            if "SSL" in reason.partition("might be")[0]:
                hint = f"; is it a listener without TLS (security_protocol in {self._where()})?"
            elif not why or "isconnected" in reason:
                hint = "; does it want TLS or a password (--kafka_config)?"
            return f"Kafka at {self.servers} cannot be reached: {reason}{hint}"
        return None

    def _where(self) -> str:
        return f"--kafka_config={self.config}" if self.config else "--kafka_config"

    def cluster_id(self) -> str:
        """What identifies the cluster, whichever of its brokers is asked."""
        return str(self.connect(_admin_client).list_topics(timeout=CHECK_SECONDS).cluster_id)

    def until_answered(self, call: Callable[[], T], what: str) -> T:
        """The result of `call`, repeated while the brokers are away.

        Raises:
            StreamError: if the brokers answer with an error that stays.
        """
        outage = Outage(self)
        while True:
            try:
                found = call()
            except client().KafkaException as error:
                first = error.args[0]
                if first.fatal() or not passes(first):
                    raise StreamError(f"{what}: {reason_of(first)}") from None
                outage.on_error(first)
                time.sleep(_TRY_SECONDS / 4)
            else:
                outage.over()
                return found


class Outage:
    """Says once that the brokers are away, again every minute, and once that they are back."""

    def __init__(self, cluster: Cluster) -> None:
        self._servers = cluster.servers
        self._said: float | None = None

    def on_error(self, error: KafkaError) -> None:
        """Takes an error of the client; also as its `error_cb`."""
        now = time.monotonic()
        if self._said is None or now > self._said + _SAY_EVERY_SECONDS:
            log.warning("Kafka at %s: %s; waiting, nothing is lost", self._servers, reason_of(error))
            self._said = now

    def over(self) -> None:
        """A broker has answered."""
        if self._said is not None:
            log.warning("Kafka at %s answers again", self._servers)
            self._said = None


def read_options(path: str, servers: str = "") -> dict[str, str]:
    """The options in a file of `name=value` lines; lines that begin with `#` or `!` are comments.

    Args:
        path: the file, local or in an object store.
        servers: those of the URL; the file may repeat them.

    Raises:
        UsageError: if the file cannot be read or a line is no option, or one that is set elsewhere. No value is shown.
    """
    from apache_beam.io.filesystems import FileSystems

    where = f"--kafka_config={path}"
    try:
        with FileSystems.open(path) as file:
            text = file.read(1 << 20).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{where} is not UTF-8 text") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"{where} cannot be read: {reason}") from None
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not name + equals + value or name.startswith(("#", "!")):
            continue
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_.]*", name):
            raise UsageError(f"{where}, line {number}: not of the form name=value")
        if name in ("bootstrap.servers", "metadata.broker.list"):
            if servers and sorted(re.split(r"\s*,\s*", value)) != sorted(servers.split(",")):
                raise UsageError(f"{where}, line {number}: {name} is not {servers}, as the URL says; remove the line")
        elif name.startswith(_REGISTRY):
            remember([f"--{name}={value}"], environment={})
        elif name in _OURS:
            raise UsageError(f"{where}, line {number}: {name} cannot be set here; {_OURS[name]}")
        else:
            options[name] = value
    remember((f"--{name}={value}" for name, value in options.items()), environment={})
    return options


def _admin_client(options: Mapping[str, Any]) -> Any:
    from confluent_kafka.admin import AdminClient

    return AdminClient(dict(options))


def passes(error: KafkaError) -> bool:
    """Whether an error ends by itself, when a broker is back or has caught up."""
    codes = client().KafkaError
    local = (codes._TRANSPORT, codes._ALL_BROKERS_DOWN, codes._TIMED_OUT, codes._TIMED_OUT_QUEUE, codes._WAIT_COORD)
    brokers = (
        *(codes.COORDINATOR_LOAD_IN_PROGRESS, codes.COORDINATOR_NOT_AVAILABLE, codes.NOT_COORDINATOR),
        *(codes.REQUEST_TIMED_OUT, codes.LEADER_NOT_AVAILABLE, codes.NETWORK_EXCEPTION, codes.CONCURRENT_TRANSACTIONS),
        *(codes.NOT_LEADER_FOR_PARTITION, codes.BROKER_NOT_AVAILABLE, codes._RESOLVE, codes._DESTROY_BROKER),
    )
    return bool(error.retriable() or error.code() in (*local, *brokers))


def reason_of(error: Any) -> str:
    """What an error says, without the thread of the client and how long it took."""
    found = error.args[0] if isinstance(error, Exception) and error.args else error
    text = found.str() if hasattr(found, "str") else str(found)
    return re.sub(r" \(after \d+ms in state \w+[^)]*\)", "", text)
