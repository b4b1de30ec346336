"""Whether a host is this machine and no other."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine only, so that nothing elsewhere reaches it."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    import ipaddress  # takes milliseconds to import, and --help is to be fast

    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """The host of a URL, or of `host:port`; empty where there is none."""
    try:
        return urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:  # brackets that are not those of an IPv6 address
        return ""
