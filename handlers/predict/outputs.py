"""What a model gives: its tensors by name, and which of them have a token axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch

from handlers.errors import BrokenModelError, TorchbeamError, one_line
from handlers.predict.faults import out_of_memory
from handlers.tensors import Frame, Ragged

Outputs = dict[str, torch.Tensor | Ragged]
Form = Literal["tensor", "sequence", "mapping"]

_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.complex32: torch.complex64} | {
    dtype: torch.float32 for name, dtype in vars(torch).items() if name.startswith("float8_")
}
_READABLE = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float32, torch.float64, torch.complex64, torch.complex128),
}


class TokenOutputs:
    """Cuts outputs with a token axis back to the lengths of their rows; detects once which outputs those are.

    Several threads may share one.
    """

    def __init__(self) -> None:
        self._per_token: dict[str, bool] = {}

    def cut(
        self,
        outputs: Outputs,
        lengths: np.ndarray,
        known: tuple[str, ...] | None,
        again: Callable[[int, int], Outputs],
        *,
        left: bool = False,
    ) -> Outputs:
        """`outputs`, those with a token axis as `Ragged`.

        The size of an output may equal the number of tokens by chance (an embedding of 384 for 384 tokens), so a row of the
        batch is run again with another length. Where that fails and nothing was padded, all are left as they are.

        Args:
            outputs: by name, of (rows, …).
            lengths: int64 of (rows,): tokens of the rows.
            known: the outputs that have a token axis, if the user names them.
            left: whether rows are padded before their start.
            again: the outputs for one of the rows alone, with that many tokens of padding.

        Raises:
            BrokenModelError: where rows were padded and it cannot be determined.
        """
        longest = max(1, int(lengths.max()))
        candidates = {
            name: output
            for name, output in outputs.items()
            if isinstance(output, torch.Tensor) and output.dim() > 1 and output.shape[1] == longest
        }
        if known is None:
            unknown = [name for name in candidates if name not in self._per_token]
            if unknown and not self._found_out(unknown, lengths, longest, again):
                return outputs
            known = tuple(name for name in candidates if self._per_token[name])
        return outputs | {
            name: Ragged.cut(output, lengths, left=left) for name, output in candidates.items() if name in known
        }

    def _found_out(
        self, names: list[str], lengths: np.ndarray, longest: int, again: Callable[[int, int], Outputs]
    ) -> bool:
        row = int(lengths.argmin())
        fewer = max(1, int(lengths[row]))
        padding = int(fewer == longest)  # the row by itself, or one token longer where that would be no change
        try:
            found = again(row, padding)
        except TorchbeamError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            if padding:  # which the model may not accept, as at its maximum of positions
                return False
            raise BrokenModelError(
                f'whether the output "{names[0]}" has a token axis is unknown, since the model fails on a row by '
                f"itself that it answered among longer ones ({one_line(error, 200)}); set the option cut of Padding"
            ) from error
        for name in names:
            output = found[name]
            self._per_token[name] = output.dim() > 1 and output.shape[1] == fewer + padding  # type: ignore[union-attr]
        return True


def named_outputs(outputs: object) -> tuple[Form, dict[str, torch.Tensor]]:
    """The tensors among a model's outputs by name: `output`, `output_0` and on for a tuple, the keys of a mapping."""
    form: Form = "sequence"
    if isinstance(outputs, torch.Tensor):
        return "tensor", {"output": outputs}
    named: dict[str, torch.Tensor] = {}
    if isinstance(outputs, Mapping):
        form = "mapping"
        named = {str(name): value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    elif isinstance(outputs, list | tuple):
        names = getattr(outputs, "_fields", None) or [f"output_{index}" for index in range(len(outputs))]
        named = {name: value for name, value in zip(names, outputs, strict=True) if isinstance(value, torch.Tensor)}
    if not named:
        raise BrokenModelError(
            f"the model gave a {type(outputs).__name__}; it must give a tensor, or tensors in a tuple or dict"
        )
    return form, named


def to_cpu(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """An output on the CPU, as numpy and Arrow can read it: dense, dequantized, without lazy bits.

    Half precisions and float8 become float32.

    Raises:
        BrokenModelError: where its dtype or layout has no counterpart in numpy.
    """
    if tensor.is_nested:
        raise BrokenModelError(f'the model gave "{name}" as a nested tensor; give a padded one, or to_padded_tensor')
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.to(_WIDER.get(tensor.dtype, tensor.dtype))
    if tensor.dtype not in _READABLE:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise BrokenModelError(f'the model gave "{name}" as {dtype}, which cannot be read; give float32 or an integer')
    return tensor.to("cpu").resolve_conj().resolve_neg()


def fill_up(value: torch.Tensor | Frame, rows: int) -> torch.Tensor | Frame:
    """`value` with its last row repeated, up to `rows`."""
    return value[torch.arange(rows).clamp(max=len(value) - 1)]
