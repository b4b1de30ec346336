"""Environment variables of model directories: which may be set, and that no other ever is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from small_models import Save

from handlers.elements.handler import TorchModelHandler
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.environment import ALLOWED, ONLY_ON, check_env_vars
from handlers.model.trust import Trust

# What a variable of these does: runs a program, loads a library or code, leads elsewhere, is a secret, or lifts a guard.
HOSTILE = (
    *("JAVA_HOME", "TORCHBEAM_SPARK_JOB_SERVER_JAR", "SPARK_HOME", "CC", "CXX", "PATH", "TORCH_ADDR2LINE_BINARY"),
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "OMP_TOOL_LIBRARIES", "CUDA_INJECTION64_PATH", "JAVA_TOOL_OPTIONS"),
    *("PYTHONPATH", "PYTHONSTARTUP", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CUTLASS_DIR"),
    *("HTTPS_PROXY", "https_proxy", "BIGQUERY_EMULATOR_HOST", "STORAGE_EMULATOR_HOST", "HF_ENDPOINT"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "HF_TOKEN"),
    *("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "PYTORCH_TUNABLEOP_FILENAME", "MKL_VERBOSE_OUTPUT_FILE", "TMPDIR", "HOME"),
    *("TORCHINDUCTOR_REDIS_HOST", "TORCH_DEVICE_BACKEND_AUTOLOAD", "TORCH_LOGS_OUT", "OMP_NUM_THREADS "),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_by_name(save: Save, name: str) -> None:
    path = save().path
    with Path(path, "model.yaml").open("a") as file:
        file.write(f"env_vars: {{'{name}': '/tmp/x'}}\n")
    before = dict(os.environ)
    with pytest.raises(UsageError, match=rf"env_vars sets {re.escape(repr(name))}.*--allow_env") as error:
        ModelDir(path)
    assert "\n" not in str(error.value)
    assert dict(os.environ) == before


def test_no_allowed_name_can_name_something() -> None:
    """A guard for those who add one: files, folders, programs, libraries, hosts and secrets are told by such words."""
    words = r"PATH|DIR|HOME|FILE|LIB(RARY|RARIES)?|TOOL|HOST|PORT|URL|PROXY|TOKEN|KEY|SECRET|CREDENTIALS|BINARY|CC|CXX"
    named = re.compile(rf"(^|_)({words}|MARCH|PRELOAD|LOGS?|OUT|PLUGIN|BACKEND)(_|$)")
    found = {name for name in ALLOWED | ONLY_ON if named.search(name)}
    assert found <= {"KMP_DUPLICATE_LIB_OK"}, "a flag"


def test_what_models_need(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model = save(env_vars={"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "PYTORCH_CUDA_ALLOC_CONF": "x:y"})
    assert os.environ["OMP_NUM_THREADS"] == "7", "only where the model is loaded"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    model.load()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["HF_HUB_OFFLINE"]) == ("2", "1")


def test_the_network_can_be_switched_off_and_not_on() -> None:
    check_env_vars({"HF_HUB_OFFLINE": "true"}, (), "m")
    with pytest.raises(UsageError, match=r"may only switch HF_HUB_OFFLINE on \(1\), and sets '0'"):
        check_env_vars({"HF_HUB_OFFLINE": "0"}, (), "m")
    check_env_vars({"HF_HUB_OFFLINE": "0"}, ("HF_HUB_OFFLINE",), "m")


def test_what_the_user_allows(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_MODEL_MODE", "before")
    with pytest.raises(UsageError, match="MY_MODEL_MODE"):
        save(env_vars={"MY_MODEL_MODE": "fast"})
    model = save(env_vars={"MY_MODEL_MODE": "fast"}, trust=Trust(allow_env=("MY_MODEL_MODE",)))
    with pytest.raises(UsageError, match="MY_MODEL_MODE"):
        ModelDir(model.path, Trust(allow_env=("my_model_mode", "MY_MODEL_MODE_2")))
    model.load()
    assert os.environ["MY_MODEL_MODE"] == "fast"
    with pytest.raises(UsageError, match=r"Trust: must be the name .* not 'A=B'"):
        Trust(allow_env=("A=B",))


def test_a_handlers_own_variables_are_the_users(save: Save) -> None:
    handler = TorchModelHandler(save(), env_vars={"JAVA_HOME": "/opt/java"})
    assert handler._env_vars == {"JAVA_HOME": "/opt/java"}


def test_a_refresh_keeps_the_trust(save: Save) -> None:
    allowed = Trust(allow_env=("MY_MODEL_MODE",))
    first, second = save(), save(env_vars={"MY_MODEL_MODE": "1"}, trust=allowed)
    handler = TorchModelHandler(first)
    with pytest.raises(UsageError, match="MY_MODEL_MODE"):
        handler.update_model_path(second.path)
    handler = TorchModelHandler(ModelDir(first.path, allowed))
    handler.update_model_path(second.path)
    assert handler._config.source.path == second.path
