"""Environment variables that a model directory may set: those that models need, and that can do nothing else.

Every name is spelled out. A prefix such as `PYTORCH_` or `OMP_` would let through what loads a library
(`OMP_TOOL_LIBRARIES`, `CUDA_INJECTION64_PATH`), runs a program (`TORCH_ADDR2LINE_BINARY`), switches a safeguard off
(`TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`), writes a file (`PYTORCH_TUNABLEOP_FILENAME`, `MKL_VERBOSE_OUTPUT_FILE`) or names a
host (`TORCHINDUCTOR_REDIS_HOST`), and what the next release adds. None of those below takes a path, a program, a
library, a host, a proxy or a credential; `CUDA_VISIBLE_DEVICES` is missing because `--device` and the slots set it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from handlers.errors import UsageError

_THREADS = (
    *("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "OMP_SCHEDULE", "OMP_WAIT_POLICY", "OMP_PROC_BIND"),
    *("OMP_PLACES", "OMP_STACKSIZE", "OMP_NESTED", "OMP_MAX_ACTIVE_LEVELS"),
    *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "GOMP_STACKSIZE"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_HW_SUBSET", "KMP_STACKSIZE", "KMP_DUPLICATE_LIB_OK"),
    *("MKL_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS", "MKL_DYNAMIC", "MKL_NUM_STRIPES"),
    *("OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"),
)
_MEMORY = (
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    *("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO"),
    *("MKL_FAST_MEMORY_LIMIT", "ARROW_DEFAULT_MEMORY_POOL"),
)
_NUMERICS = (
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DISABLE_FAST_MM", "ATEN_CPU_CAPABILITY"),
    *("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_PRIMITIVE_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"),
    *("TORCH_BLAS_PREFER_CUBLASLT", "TORCH_LINALG_PREFER_CUSOLVER", "TORCH_CUBLASLT_UNIFIED_WORKSPACE"),
    *("TORCH_CUDNN_V8_API_DISABLED", "TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT", "TORCH_CUDNN_USE_HEURISTIC_MODE_B"),
    *("TORCH_CUDNN_SDPA_DEPRIORITIZED", "TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_MKLDNN_MATMUL_MIN_SIZE"),
)
_DEVICES = (
    *("CUDA_MODULE_LOADING", "CUDA_MODULE_DATA_LOADING", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS"),
    *("CUDA_CACHE_DISABLE", "CUDA_CACHE_MAXSIZE", "PYTORCH_NVML_BASED_CUDA_CHECK", "PYTORCH_ENABLE_MPS_FALLBACK"),
)
# Those that choose among what torch.compile and TorchScript generate themselves. TORCHINDUCTOR_CPP_MARCH is a compiler
# flag, others name files, folders and hosts.
_COMPILATION = (
    *("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TORCHDYNAMO_SUPPRESS_ERRORS"),
    *("TORCHINDUCTOR_MAX_AUTOTUNE", "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM", "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE"),
    *("TORCHINDUCTOR_COORDINATE_DESCENT_TUNING", "TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_CUDAGRAPHS"),
    *("TORCHINDUCTOR_FREEZING", "TORCHINDUCTOR_LAYOUT_OPTIMIZATION", "TORCHINDUCTOR_SHAPE_PADDING"),
    *("TORCHINDUCTOR_DETERMINISTIC", "TORCHINDUCTOR_BATCH_INVARIANT", "TORCHINDUCTOR_EMULATE_PRECISION_CASTS"),
    *("TORCHINDUCTOR_CPP_MIN_CHUNK_SIZE", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS"),
    *("PYTORCH_JIT", "PYTORCH_TENSOREXPR", "PYTORCH_TENSOREXPR_FALLBACK"),
)
_TEXT = (
    *("TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS"),
    *("HF_HUB_DISABLE_PROGRESS_BARS",),
)
ALLOWED = frozenset((*_THREADS, *_MEMORY, *_NUMERICS, *_DEVICES, *_COMPILATION, *_TEXT))

# They turn network access or telemetry off: a model may switch them on, never off.
ONLY_ON = frozenset(
    ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
)

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def check_env_vars(env_vars: Mapping[str, str], allow_env: Collection[str], path: str) -> None:
    """Refuses environment variables that a model directory may not set.

    Args:
        env_vars: those of its `model.yaml`.
        allow_env: further names that the user allows.
        path: of the `model.yaml`.

    Raises:
        UsageError: with the name.
    """
    for name, value in env_vars.items():
        if name in allow_env or name in ALLOWED:
            continue
        if name not in ONLY_ON:
            raise UsageError(
                f"{path}: env_vars sets {name[:100]!r}, which is not among the variables that a model may set; remove "
                "it, or allow it with --allow_env=NAME if you trust this model with it (in Python: Trust(allow_env=…))"
            )
        if value.lower() not in ("1", "on", "yes", "true"):
            raise UsageError(f"{path}: env_vars may only switch {name} on (1), and sets {value[:80]!r}")


def check_name(name: str) -> str:
    """The name of an environment variable; raises `ValueError` for an invalid name."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"must be the name of an environment variable, not {name!r}")
    return name
