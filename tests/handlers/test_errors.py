import pytest
import torch
from torch import nn

from handlers.errors import one_line


def test_a_message_is_put_on_one_line_and_cut() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError("x" * 20), limit=5) == "xxxx…"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line(ValueError("\x1b[31mred \udcff ü")) == "\\x1b[31mred \\udcff ü"


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_of_a_torchscript_model_what_happened_is_told_and_not_where() -> None:
    scripted = torch.jit.script(nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="Traceback of TorchScript") as caught:
        scripted(torch.zeros(3, 5))
    assert one_line(caught.value).endswith("mat1 and mat2 shapes cannot be multiplied (3x5 and 4x2)")
    assert one_line(caught.value).startswith("RuntimeError: ")
