"""Reading Spark's web pages: those of a master, and those of a job."""

from __future__ import annotations

import time
from urllib.request import ProxyHandler, build_opener

_PAGE_BYTES = 8 << 20


def read_page(url: str, seconds: float) -> str:
    """The text at `url`; raises OSError or ValueError if it cannot be read within about `seconds`."""
    # No proxy: the page is in the user's own network. URLs of other schemes, such as file:, are not opened.
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is not the address of a web page")
    deadline = time.monotonic() + seconds
    text = b""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=seconds) as response:
            while piece := response.read1(1 << 16):
                text += piece
                if time.monotonic() > deadline or len(text) > _PAGE_BYTES:
                    raise TimeoutError(f"{url} does not end")
            if response.length:
                raise OSError(f"{url} is cut short")
    except Exception as error:  # http.client raises errors of its own for what is not HTTP
        raise OSError(str(error)) from error
    return text.decode("utf-8", "replace")
