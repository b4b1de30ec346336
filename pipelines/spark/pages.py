"""Reading Spark's web pages: those of a master, and those of a job."""

from __future__ import annotations

import time
from urllib.request import ProxyHandler, build_opener

_PAGE_BYTES = 8 << 20


def read_page(url: str, seconds: float) -> str:
    """The text at `url`; OSError or ValueError where there is none to be had within about `seconds`."""
    # No proxy: the page is in the user's own network. A URL of another kind, as file:, is not opened.
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is no address of a web page")
    deadline = time.monotonic() + seconds
    text = b""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=seconds) as answer:
            while piece := answer.read1(1 << 16):
                text += piece
                if time.monotonic() > deadline or len(text) > _PAGE_BYTES:
                    raise TimeoutError(f"{url} does not end")
            if answer.length:
                raise OSError(f"{url} ends before its end")
    except Exception as error:  # http.client has errors of its own for what is no HTTP
        raise OSError(str(error)) from error
    return text.decode("utf-8", "replace")
