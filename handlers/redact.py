"""Keeps secrets out of everything that is shown or logged: `redact` replaces them with `***`.

They are found by the name before them (`--s3_secret_access_key=…`, `-Dspark.hadoop.fs.s3a.secret.key=…`, `"password": …`),
by their form (passwords in URLs, `Bearer …`, AWS and GitHub keys, private keys), and by their value, once `remember` has
seen them in the arguments of a command or in its environment.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

MASK = "***"

_WORDS = (
    r"(?:secret|passw(?:or)?d|passphrase|passwort|(?<![a-z])pwd|token(?!s|iz)|credential|jaas\.config|gbek"
    r"|(?:api|access|private|account|encryption|shared|sas)[._-]?key)"
)
_NAME = rf"{_WORDS}[\w.\-]{{0,100}}"  # bounded, as all here, so that no text takes long
_KEY = r"(?:-----BEGIN [A-Z ]*PRIVATE KEY-----)"

# Each has one group, the secret.
_PATTERNS = [
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"{_KEY}(.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"://(?=[^\s/?#:]{0,200}:[^\s/?#]{0,200}@|[^\s/?#@:]{16,200}@)([^\s/?#]{1,400})@",
        rf"[?&](?:[\w.\-]{{0,100}}{_NAME}|[\w.\-]{{0,100}}signature|sig|key|code|auth)=([^&\s\"'#]+)",
        rf"{_NAME}\\?[\"']?\s*[=:]\s*\\?\"((?:[^\"\\]|\\.)+)\"?",
        rf"{_NAME}\\?[\"']?\s*[=:]\s*'((?:[^'\\]|\\.)+)'?",
        rf"{_NAME}=([^\s\"']+)",
        rf"{_NAME}\\?[\"']\s*:\s*([^\s\"',}}\]]+)",
        r"(?:passw(?:or)?d|secret|[._-](?:token|key)):\s?([^\s\"']+)",
        rf"(?<![\w\-])--[\w\-]{{0,100}}{_NAME}[\"']?,?\s+[\"']?((?!-)[^\s\"']+)",
        r"authorization[\"']?\s*[=:]\s*[\"']?(?:(?:bearer|basic|token)\s+)?([^\s\"']+)",
        r"\bbearer\s+((?=\S*\d)[\w\-.~+/=]{8,})",
        r"\b((?:AKIA|ASIA)[A-Z0-9]{16})\b",
        r"\b(gh[pousr]_\w{30,}|github_pat_\w{30,}|hf_[a-z0-9]{20,}|ya29\.[\w\-]{20,}|xox[abprs]-[\w\-]{10,})",
        r"\b(eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*)",
    )
]

# Shorter ones, such as `true`, are also ordinary words.
_LEAST = 6
_known: set[str] = set()


def redact(text: str) -> str:
    """`text` with every secret replaced by `***`."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(_mask, text)
    return text


def remember(arguments: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
    """Remembers the secrets among the arguments of a command, and in its environment, to find them without their names.

    Args:
        arguments: those of the command line.
        environment: variables by name; those of this process by default.
    """
    given = list(arguments)
    texts = [*given, " ".join(given), *(f"{one} {other}" for one, other in itertools.pairwise(given))]
    for name, value in (os.environ if environment is None else environment).items():
        if re.search(_NAME, name, re.IGNORECASE) and not os.path.exists(value):  # noqa: PTH110 - any text
            _remember(value)
        texts.append(value if "://" in value else "")
    for text in texts:
        for pattern in _PATTERNS:
            for found in pattern.finditer(text):
                _remember(found.group(1))
    # A value with spaces or quotes ends with its argument.
    for argument in given:
        name, equals, value = argument.rpartition("=") if argument.startswith("-") else ("", "", "")
        if equals and re.search(rf"{_NAME}$", name, re.IGNORECASE):
            _remember(value)
        if last := re.search(rf"{_NAME}=(.+)$", argument, re.IGNORECASE | re.DOTALL):
            _remember(last.group(1))


def _remember(value: str) -> None:
    parts = [value, *value.split(":", 1)[1:]] if ":" in value else [value]  # user:password of a URL
    for part in parts:
        if len(part) >= _LEAST and part != MASK:
            _known.update((part, quote(part, safe=""), repr(part)[1:-1]))


def _mask(found: re.Match[str]) -> str:
    begin, end = found.start(1) - found.start(), found.end(1) - found.start()
    return found.group()[:begin] + MASK + found.group()[end:]
