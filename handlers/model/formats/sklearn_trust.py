"""Which types a skops file may hold, and whether the trees in it can be walked safely.

skops creates an object only if its type is trusted, and runs no code of the file. By default it trusts the estimators of
scikit-learn and what they are usually made of. `REVIEWED` adds types that compute and nothing else. It holds names, not
prefixes: scikit-learn and numpy have functions that read files and run text.

scikit-learn follows the indices in its trees without looking at them, so that a file made for it could read memory that
is not the model's. That is why skops does not trust trees; here they are, after a check of every index.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from handlers.errors import UsageError

_TREE = "sklearn.tree._tree.Tree"
_PREDICTOR = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"

REVIEWED = frozenset(
    (
        *(_TREE, _PREDICTOR),
        *("numpy.dtype", "numpy.mean", "numpy.median"),
        *("sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"),
        *("sklearn.cluster._bisect_k_means._BisectingTree", "sklearn.cluster._kmeans._kmeans_single_lloyd"),
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        *(
            f"sklearn.gaussian_process.kernels.{name}"
            for name in ("ConstantKernel", "DotProduct", "Exponentiation", "ExpSineSquared", "Matern", "Product", "RBF")
        ),
        *(f"sklearn.gaussian_process.kernels.{name}" for name in ("RationalQuadratic", "Sum", "WhiteKernel")),
        *(f"sklearn.feature_selection._univariate_selection.{name}" for name in ("chi2", "f_classif", "f_regression")),
        *(f"sklearn.neural_network._stochastic_optimizers.{name}Optimizer" for name in ("Adam", "SGD")),
        *(f"sklearn._loss.loss.HalfTweedieLoss{name}" for name in ("", "Identity")),
    )
)
_NO_STATE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, str, bytes, int, float)


def refused(found: list[str]) -> list[str]:
    """Those of the types that skops does not trust by itself that are not trusted here either."""
    return sorted(set(found) - REVIEWED)


def check_trees(model: Any, file: Path) -> None:
    """Checks the indices of all trees in `model`; raises `UsageError` where one leads out of its tree or its row."""
    from sklearn.ensemble._bagging import BaseBagging
    from sklearn.ensemble._forest import BaseForest
    from sklearn.ensemble._gb import BaseGradientBoosting
    from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    from sklearn.tree import BaseDecisionTree
    from sklearn.tree._tree import Tree

    found: dict[int, Any] = {}
    checked: set[int] = set()
    for part in _reachable(model):
        sound = True
        if isinstance(part, Tree | TreePredictor):
            found[id(part)] = part
        elif isinstance(part, BaseDecisionTree) and hasattr(part, "tree_"):
            sound = _is_sound(part.tree_, part.n_features_in_)
            checked.add(id(part.tree_))
        elif isinstance(part, BaseForest | BaseGradientBoosting):  # they pass rows on without looking at them
            trees = np.ravel(getattr(part, "estimators_", ()))
            sound = all(isinstance(tree, BaseDecisionTree) for tree in trees)
            sound = sound and all(tree.n_features_in_ == part.n_features_in_ for tree in trees)
        elif isinstance(part, BaseBagging):
            columns = [len(each) for each in getattr(part, "estimators_features_", ())]
            sound = [tree.n_features_in_ for tree in getattr(part, "estimators_", ())] == columns
            if getattr(part, "_max_features", None) == part.n_features_in_:  # then it gives them all columns
                sound = sound and set(columns) == {part.n_features_in_}
        elif isinstance(part, BaseHistGradientBoosting):
            if getattr(part, "_preprocessor", None) is not None:
                raise UsageError(
                    f"{file.name} is refused: its {type(part).__name__} has categorical features; encode them in a step "
                    "before it, as with OrdinalEncoder"
                )
            for each in (each for stage in getattr(part, "_predictors", ()) for each in stage):
                sound &= _is_sound_predictor(each, part.n_features_in_)
                checked.add(id(each))
        if not sound:
            raise UsageError(
                f"{file.name} is refused: a tree in its {type(part).__name__} has indices that lead out of it"
            )
    if set(found) - checked:
        raise UsageError(f"{file.name} is refused: it holds a tree outside of an estimator")


def _is_sound(tree: Any, features: int) -> bool:
    left, right = np.asarray(tree.children_left), np.asarray(tree.children_right)
    inner = left != -1
    here, count = np.arange(len(left)), len(left)
    ahead = all(((side > here) & (side < count))[inner].all() for side in (left, right))
    used = np.asarray(tree.feature)[inner]
    return bool(count and ahead and ((used >= 0) & (used < features)).all() and tree.n_features == features)


def _is_sound_predictor(predictor: Any, features: int) -> bool:
    nodes = predictor.nodes
    inner = nodes[nodes["is_leaf"] == 0]
    here, count = np.flatnonzero(nodes["is_leaf"] == 0), len(nodes)
    ahead = all(((inner[side] > here) & (inner[side] < count)).all() for side in ("left", "right"))
    used = inner["feature_idx"].astype(np.int64)
    numeric = not inner["is_categorical"].any()
    return bool(count and ahead and numeric and ((used >= 0) & (used < features)).all())


def _reachable(model: Any) -> Iterator[Any]:
    """Every object that `model` refers to, however deep."""
    seen: dict[int, Any] = {}
    waiting = [model]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, _NO_STATE):
            continue
        seen[id(part)] = part
        yield part
        if isinstance(part, np.ndarray):
            if part.dtype == object:
                waiting += part.ravel().tolist()
        else:
            waiting += gc.get_referents(part)
