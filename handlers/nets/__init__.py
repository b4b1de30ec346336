"""The built-in networks, which `torchbeam train` makes and `model.yaml` names as `handlers.nets:Mlp`.

What belongs here: modules of plain torch that workers import to score. Nothing of training. Their names, arguments and
state are in the model directories of users, so they must stay as they are.
May import: the modules at the top of `handlers`.
"""

from handlers.nets.lstm import Lstm
from handlers.nets.mlp import Mlp

__all__ = ["Lstm", "Mlp"]
