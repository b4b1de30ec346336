import logging
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from deadlines import WAIT_SECONDS

from handlers.errors import UsageError
from handlers.predict import placement
from handlers.predict.placement import Placement
from handlers.predict.slots import take_slot


def hold(folder, gpus, copies, pipe):
    """Takes a slot in a process of its own and keeps it until the process ends."""
    try:
        slot = take_slot(gpus, copies, folder=Path(folder))
    except UsageError as error:
        pipe.send((os.getpid(), str(error)))
        return
    pipe.send((os.getpid(), (slot.number, slot.gpu)))
    time.sleep(3600)


@pytest.fixture
def processes(tmp_path):
    context = multiprocessing.get_context("fork")
    started = []

    def start(count, gpus, copies):
        pipes = [context.Pipe() for _ in range(count)]
        for _, end in pipes:
            started.append(context.Process(target=hold, args=(str(tmp_path), gpus, copies, end), daemon=True))
            started[-1].start()
        return [pipe.recv() for pipe, _ in pipes if pipe.poll(WAIT_SECONDS)]

    yield start
    for process in started:
        process.kill()
        process.join(WAIT_SECONDS)


def test_processes_spread_over_the_gpus(processes):
    found = [slot for _, slot in processes(6, 3, 2)]
    assert sorted(found) == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2)]


def test_a_process_too_many_is_told_so(processes):
    first = processes(2, 2, 1)
    ((_, message),) = processes(1, 2, 1)
    assert "all 2 slots of 2 GPU(s) are taken, by the processes" in message
    for process, _ in first:
        assert str(process) in message
    assert "--model_copies (now 1)" in message


def test_a_killed_process_frees_its_slot(processes):
    ((first, slot),) = processes(1, 1, 1)
    assert slot == (0, 0)
    os.kill(first, signal.SIGKILL)
    for _ in range(50):
        ((_, again),) = processes(1, 1, 1)
        if again == (0, 0):
            return
        time.sleep(0.1)
    pytest.fail("the slot of the killed process was not freed")


def test_a_forked_child_does_not_keep_the_slot_of_its_parent(tmp_path):
    slot = take_slot(1, folder=tmp_path)
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"!")
        time.sleep(3600)
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"!"
        slot.close()
        take_slot(1, folder=tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_certain_gpu_and_its_name_on_the_host(tmp_path):
    first = take_slot(4, 2, gpu=2, folder=tmp_path)
    second = take_slot(4, 2, gpu=2, folder=tmp_path)
    assert [(slot.number, slot.gpu) for slot in (first, second)] == [(2, 2), (6, 2)]
    with pytest.raises(UsageError, match="slots of cuda:2 are taken"):
        take_slot(4, 2, gpu=2, folder=tmp_path)
    # CUDA_VISIBLE_DEVICES=2 makes the same GPU number 0 of another process.
    with pytest.raises(UsageError, match="all 2 slots"):
        take_slot(1, 2, identify=lambda _: "2", folder=tmp_path)
    for slot in (first, second):
        slot.close()


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(placement, "visible_gpus", lambda: 2)
    monkeypatch.setattr(placement, "_identity", str)
    monkeypatch.setattr(placement, "_held", [])
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))


@pytest.mark.usefixtures("two_gpus")
def test_all_models_of_a_process_share_its_slot():
    assert Placement().resolve() == torch.device("cuda", 0)
    assert Placement("cuda").resolve() == torch.device("cuda", 0)
    assert Placement("cuda:1").resolve() == torch.device("cuda", 1)
    assert Placement("cuda:0").resolve() == torch.device("cuda", 0)


@pytest.mark.usefixtures("two_gpus")
def test_copies_of_a_shared_model_have_a_slot_each():
    found = [Placement().resolve_alone(2, "models/a") for _ in range(4)]
    assert [device.index for device, _ in found] == [0, 1, 0, 1]
    with pytest.raises(UsageError, match="all 4 slots"):
        Placement().resolve_alone(2, "models/a")
    found.append(Placement().resolve_alone(2, "models/b"))  # which takes the place of the other
    assert found[-1][0].index == 0
    for _, slot in found:
        slot.close()


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(placement, "visible_gpus", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match=r'sees no GPU \(CUDA_VISIBLE_DEVICES is ""\); use --device=cpu'):
        Placement("cuda").resolve()
    monkeypatch.setattr(placement, "visible_gpus", lambda: 2)
    with pytest.raises(UsageError, match=r"sees 2 GPU\(s\), cuda:0 to cuda:1"):
        Placement("cuda:2").resolve()


def test_auto_falls_back_to_the_cpu_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(placement, "visible_gpus", lambda: 0)
    monkeypatch.setattr(placement, "_cpu_logged", False)
    with caplog.at_level(logging.INFO, "handlers.predict.placement"):
        assert Placement().resolve() == torch.device("cpu")
        assert Placement().resolve() == torch.device("cpu")
    assert [record.message for record in caplog.records] == ["no GPU is visible; the model runs on the CPU"]


@pytest.mark.parametrize("bad", [{"device": "GPU"}, {"device": "cuda:x"}, {"precision": "int8"}, {"copies": 0}])
def test_what_is_malformed_is_refused(bad):
    with pytest.raises(UsageError):
        Placement(**bad)


def test_public_names_do_not_import_torch_or_beam():
    code = "import sys, handlers, transforms; assert not {'torch', 'apache_beam'} & set(sys.modules), 'imported'"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
