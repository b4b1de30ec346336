"""What the tests of refreshes share."""

from collections.abc import Iterator

import pytest

from handlers.predict.released import end_exempt, exempt


@pytest.fixture(autouse=True, scope="module")
def _collected_once() -> Iterator[None]:
    """Every `Refresher` collects garbage, of which there is then only its own."""
    exempt()
    yield
    end_exempt()
