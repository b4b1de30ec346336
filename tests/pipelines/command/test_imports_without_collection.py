import gc
from collections.abc import Iterator

import pytest

from pipelines.command.process import imports_without_collection


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_the_collector_is_off_until_the_imports_are_done_and_their_objects_are_left_out_of_it() -> None:
    kept = []
    with imports_without_collection() as imported:
        assert not gc.isenabled()
        kept.append([])
        before = gc.get_freeze_count()
        imported()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    assert gc.isenabled()


def test_it_is_on_again_after_an_error() -> None:
    with pytest.raises(KeyError), imports_without_collection():
        raise KeyError
    assert gc.isenabled()
