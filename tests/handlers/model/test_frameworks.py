"""Models of scikit-learn, ONNX Runtime and XGBoost answer as the framework itself does, and load nothing unsafe."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import xgboost
import yaml
from deadlines import WAIT_SECONDS
from onnx import TensorProto, helper
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from handlers import TorchModelHandler
from handlers.elements.failures import FailedPrediction
from handlers.errors import UsageError
from handlers.model.directory import ModelDir
from handlers.model.formats import sklearn as sklearn_format
from handlers.model.loading import load_model
from handlers.model.summary import summary
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor

pytestmark = pytest.mark.slow(20)

CANCER = load_breast_cancer(as_frame=True).data
MALIGNANT = load_breast_cancer().target
DIGITS, DIGIT = load_digits(return_X_y=True)
DIABETES, PROGRESSION = load_diabetes(return_X_y=True, as_frame=True)


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def answers(model: ModelDir, examples: list[Any], *, head: bool = True) -> list[Any]:
    """The answers of the element path."""
    handler = TorchModelHandler(model, head=head)
    return [result.inference for result in handler.run_inference(examples, handler.load_model())]


def mixed() -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers with gaps and texts, and classes that are texts."""
    draw = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "age": draw.integers(18, 90, 300),
            "income": np.where(draw.random(300) < 0.1, np.nan, draw.normal(30, 9, 300)),
            "country": draw.choice(["AT", "CH", "DE"], 300),
        }
    )
    return frame, np.where(frame["age"] + 20 * (frame["country"] == "CH") > 60, "good", "bad")


def mixed_pipeline() -> Any:
    frame, classes = mixed()
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    parts = ColumnTransformer([("n", numbers, ["age", "income"]), ("c", OneHotEncoder(), ["country"])])
    return make_pipeline(parts, LogisticRegression()).fit(frame, classes)


class TestSklearn:
    @pytest.mark.parametrize(
        "estimator",
        [
            make_pipeline(StandardScaler(), LogisticRegression()),
            RandomForestClassifier(8, random_state=0),
            ExtraTreesClassifier(4, random_state=0),
            GradientBoostingClassifier(n_estimators=5),
            HistGradientBoostingClassifier(max_iter=5),
            CalibratedClassifierCV(DecisionTreeClassifier(max_depth=3), cv=2),
        ],
        ids=lambda each: type(each).__name__,
    )
    def test_a_classifier_on_named_columns(self, tmp_path: Path, estimator: Any) -> None:
        estimator.fit(CANCER, MALIGNANT)
        model = ModelDir.save(estimator, tmp_path / "m")
        content = yaml.safe_load((tmp_path / "m" / "model.yaml").read_text())
        assert {key: content[key] for key in content if key != "sha256"} == {
            "name": "m",
            "task": "classification",
            "format": "sklearn",
            "weights": "model.skops",
        }
        some = CANCER.sample(50, random_state=1)[CANCER.columns[::-1]]  # another order of columns, and one more
        found = answers(model, rows(some.assign(other="x")))
        expected = estimator.predict_proba(some[CANCER.columns])
        assert [each["predicted_class"] for each in found] == estimator.predict(some[CANCER.columns]).tolist()
        assert [each["confidence"] for each in found] == pytest.approx(expected.max(axis=1), abs=1e-6)

    def test_an_unnamed_matrix(self, tmp_path: Path) -> None:
        estimator = make_pipeline(StandardScaler(), PCA(8), LogisticRegression()).fit(DIGITS, DIGIT)
        model = ModelDir.save(estimator, tmp_path / "m")
        prediction = Predictor(model.load()).predict({"anything": torch.from_numpy(DIGITS)})
        assert np.allclose(prediction.tensors["output"].numpy(), estimator.predict_proba(DIGITS), atol=1e-6)
        found = answers(model, list(DIGITS[:20]))
        assert [each["predicted_class"] for each in found] == estimator.predict(DIGITS[:20]).tolist()

    def test_a_regression(self, tmp_path: Path) -> None:
        estimator = LinearRegression().fit(DIABETES, PROGRESSION)
        found = answers(ModelDir.save(estimator, tmp_path / "m"), rows(DIABETES))
        assert [each["prediction"] for each in found] == pytest.approx(estimator.predict(DIABETES), rel=1e-6)

    def test_columns_of_mixed_types(self, tmp_path: Path) -> None:
        pipeline = mixed_pipeline()
        frame, _ = mixed()
        model = ModelDir.save(pipeline, tmp_path / "m")
        examples = rows(frame)
        examples[3]["income"] = None
        examples[5]["country"] = "XX"
        examples[8]["age"] = "old"
        del examples[9]["country"]
        found = answers(model, examples)
        failed = {row: each for row, each in enumerate(found) if isinstance(each, FailedPrediction)}
        assert {row: (each.stage, each.error_type) for row, each in failed.items()} == {
            5: ("forward", "ValueError"),
            8: ("encode", "WrongType"),
            9: ("forward", "ValueError"),
        }
        assert "unknown categories ['XX']" in failed[5].message
        frame.loc[3, "income"] = np.nan
        expected = pipeline.predict_proba(frame)
        for row, each in enumerate(found):
            if row not in failed:
                assert each["predicted_class"] == pipeline.classes_[expected[row].argmax()]
                assert each["confidence"] == pytest.approx(expected[row].max(), abs=1e-6)

    def test_texts(self, tmp_path: Path) -> None:
        texts, classes = ["good film", "bad film", "so good", "so bad"] * 5, [1, 0, 1, 0] * 5
        pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, classes)
        found = answers(ModelDir.save(pipeline, tmp_path / "m"), [{"text": each} for each in texts])
        assert [each["confidence"] for each in found] == pytest.approx(
            pipeline.predict_proba(texts).max(axis=1), abs=1e-6
        )

    def test_other_tasks(self, tmp_path: Path) -> None:
        pca = PCA(3).fit(DIGITS)
        model = ModelDir.save(pca, tmp_path / "pca")
        assert model.spec.task == "embedding"
        found = [each["embedding"] for each in answers(model, list(DIGITS[:5]))]
        assert np.allclose(found, pca.transform(DIGITS[:5]), atol=1e-5)
        forest = IsolationForest(n_estimators=10, max_features=0.5, random_state=0).fit(DIGITS)
        model = ModelDir.save(forest, tmp_path / "forest")
        assert [int(each["output"]) for each in answers(model, list(DIGITS[:9]))] == forest.predict(DIGITS[:9]).tolist()
        two = np.c_[MALIGNANT, 1 - MALIGNANT]
        several = MultiOutputClassifier(LogisticRegression()).fit(CANCER[["mean radius"]], two)
        model = ModelDir.save(several, tmp_path / "several", task="multilabel", labels=["good", "bad"])
        found = answers(model, rows(CANCER[["mean radius"]][:4]))
        expected = [each[:4, 1] for each in several.predict_proba(CANCER[["mean radius"]])]
        assert np.allclose([each["probabilities"] for each in found], np.transpose(expected), atol=1e-6)

    def test_nan_goes_in_only_where_the_estimator_takes_it(self, tmp_path: Path) -> None:
        plain = make_pipeline(StandardScaler(), PCA(4), LogisticRegression()).fit(DIGITS, DIGIT)
        imputing = make_pipeline(SimpleImputer(), StandardScaler(), PCA(4), LogisticRegression()).fit(DIGITS, DIGIT)
        table = pd.DataFrame(DIGITS[:3]).rename(columns="p{}".format).replace({0.0: np.nan})
        found = answers(ModelDir.save(plain, tmp_path / "plain"), rows(table))
        assert {each.error_type for each in found} == {"NotFinite"}
        found = answers(ModelDir.save(imputing, tmp_path / "imputing"), rows(table))
        assert [each["predicted_class"] for each in found] == imputing.predict(table.to_numpy()).tolist()

    def test_what_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = make_pipeline(FunctionTransformer(subprocess.getoutput), LogisticRegression())
        with pytest.raises(UsageError, match=r"it holds subprocess\.getoutput, which is not trusted"):
            ModelDir.save(own, tmp_path / "own")
        reads = make_pipeline(FunctionTransformer(np.load), LogisticRegression())
        with pytest.raises(UsageError, match=r"it holds numpy\.load"):
            ModelDir.save(reads, tmp_path / "reads")
        with pytest.raises(UsageError, match="KDTree"):
            ModelDir.save(KNeighborsClassifier(algorithm="kd_tree").fit(DIGITS, DIGIT), tmp_path / "neighbours")
        with pytest.raises(UsageError, match="holds a LinearRegression that was not fitted; fit it first"):
            ModelDir.save(LinearRegression(), tmp_path / "unfitted")
        monkeypatch.setattr(sklearn_format, "MAX_BYTES", 1000)
        monkeypatch.setattr(sklearn_format, "MAX_RATIO", 0.5)
        with pytest.raises(UsageError, match=r"would unpack to [\d,]+ bytes"):
            ModelDir.save(LinearRegression().fit(DIABETES, PROGRESSION), tmp_path / "own")
        monkeypatch.undo()
        assert not (tmp_path / "own").exists()
        assert not (tmp_path / "unfitted").exists()
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "m.skops").write_bytes(pickle.dumps(LinearRegression()))
        (tmp_path / "p" / "model.yaml").write_text("{name: p, format: sklearn, weights: m.skops}")
        with pytest.raises(UsageError, match=r"m\.skops cannot be loaded as sklearn"):
            ModelDir(tmp_path / "p").load()
        ridge = RidgeClassifier().fit(DIGITS, DIGIT)
        with pytest.raises(
            UsageError, match="a RidgeClassifier without predict_proba, which task classification needs"
        ):
            ModelDir.save(ridge, tmp_path / "ridge", task="classification").load()
        with pytest.raises(UsageError, match="write task: classification"):
            ModelDir.save(ridge, tmp_path / "ridge", task="regression").load()

    @pytest.mark.parametrize("kind", [DecisionTreeClassifier, RandomForestClassifier, HistGradientBoostingClassifier])
    @pytest.mark.parametrize("what", ["child", "back", "feature"])
    def test_trees_that_lead_out_are_refused(self, tmp_path: Path, kind: Any, what: str) -> None:
        """What would read memory outside of the model, or never end, is found before a row is scored."""
        estimator = kind(**({"max_iter": 2} if kind is HistGradientBoostingClassifier else {"max_depth": 3}))
        estimator.fit(DIGITS, DIGIT)
        if kind is HistGradientBoostingClassifier:
            nodes, (left, feature) = estimator._predictors[1][3].nodes, ("left", "feature_idx")
            nodes[{"feature": feature}.get(what, left)][0] = {"child": 10**6, "back": 0, "feature": 64}[what]
        else:
            tree = (estimator if kind is DecisionTreeClassifier else estimator.estimators_[7]).tree_
            state = tree.__getstate__()
            name = "feature" if what == "feature" else "left_child"
            state["nodes"][name][0] = {"child": 10**6, "back": 0, "feature": 64}[what]
            tree.__setstate__(state)
        with pytest.raises(UsageError, match=r"is refused: a tree in its \w+ has indices that lead out of it"):
            ModelDir.save(estimator, tmp_path / "m")

    def test_a_forest_whose_trees_take_more_columns(self, tmp_path: Path) -> None:
        forest = RandomForestClassifier(3).fit(DIGITS, DIGIT)
        forest.n_features_in_ = 2
        with pytest.raises(UsageError, match="RandomForestClassifier has indices that lead out"):
            ModelDir.save(forest, tmp_path / "m")


def graph(*, rows: Any = "rows", kinds: Any = None) -> onnx.ModelProto:
    """y = 2·a + b, of columns each by itself."""
    kinds = kinds or {"a": TensorProto.DOUBLE, "b": TensorProto.DOUBLE}
    inputs = [helper.make_tensor_value_info(name, kind, [rows, 1]) for name, kind in kinds.items()]
    nodes = [helper.make_node("Add", ["a", "a"], ["twice"]), helper.make_node("Add", ["twice", "b"], ["y"])]
    output = helper.make_tensor_value_info("y", TensorProto.DOUBLE, [rows, 1])
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output]), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 8
    return made


class TestOnnx:
    def test_a_module_exported_by_torch(self, tmp_path: Path) -> None:
        module = torch.nn.Sequential(torch.nn.Linear(30, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        batch = torch.export.Dim("rows")
        program = torch.onnx.export(
            module, (torch.zeros(2, 30),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
        )
        program.save(tmp_path / "net.onnx", external_data=True)
        table = (CANCER - CANCER.mean()) / CANCER.std()
        x = torch.tensor(table.to_numpy(), dtype=torch.float32)
        expected = module(x).softmax(dim=1).max(dim=1)
        for index, given in enumerate((program, tmp_path / "net.onnx", onnx.load(tmp_path / "net.onnx"))):
            model = ModelDir.save(given, tmp_path / f"m{index}", task="classification")
            found = answers(model, rows(table[:40]))
            assert [each["predicted_class"] for each in found] == expected.indices[:40].tolist()
            assert [each["confidence"] for each in found] == pytest.approx(expected.values[:40].tolist(), abs=1e-6)

    @pytest.mark.parametrize("count", ["rows", 4])
    def test_inputs_by_name_and_a_fixed_number_of_rows(self, tmp_path: Path, count: Any) -> None:
        model = ModelDir.save(graph(rows=count), tmp_path / "m", task="regression")
        found = answers(model, [{"a": a, "b": 1} for a in range(10)])
        assert [each["prediction"] for each in found] == [2 * a + 1 for a in range(10)]
        info = summary(model)["inputs"]
        assert [(each["name"], each["dtype"], each["shape"]) for each in info] == [
            ("a", "float64", [1]),
            ("b", "float64", [1]),
        ]

    @pytest.mark.parametrize("shape", [["rows"], ["rows", 1]])
    def test_texts_are_inputs(self, tmp_path: Path, shape: list[Any]) -> None:
        """A graph that gives 1 for AT and 0 for other texts, of a column of text."""
        inputs = [helper.make_tensor_value_info("country", TensorProto.STRING, shape)]
        node = helper.make_node(
            "LabelEncoder",
            ["country"],
            ["y"],
            domain="ai.onnx.ml",
            keys_strings=["AT"],
            values_floats=[1.0],
            default_float=0.0,
        )
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
        made = helper.make_model(helper.make_graph([node], "g", inputs, [output]), opset_imports=opsets)
        made.ir_version = 8
        model = ModelDir.save(made, tmp_path / "m", task="regression")
        found = answers(model, [{"country": each} for each in ("AT", "CH", None)])
        assert [each["prediction"] for each in found[:2]] == [1, 0]
        assert (found[2].stage, found[2].message) == ("forward", 'column "country" is null, and the graph takes text')

    def test_what_is_refused(self, tmp_path: Path) -> None:
        outside = tmp_path / "secret"
        outside.write_bytes(b"A" * 8)
        (tmp_path / "m").mkdir()
        made = graph()
        weight = TensorProto(name="b", data_type=TensorProto.DOUBLE, dims=[1], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value="../secret")
        del made.graph.input[1]
        made.graph.initializer.append(weight)
        (tmp_path / "m" / "m.onnx").write_bytes(made.SerializeToString())
        (tmp_path / "m" / "model.yaml").write_text("{name: m, format: onnx, weights: m.onnx}")
        with pytest.raises(UsageError, match=r"cannot be loaded as onnx: .*escapes model directory"):
            ModelDir(tmp_path / "m").load()
        (tmp_path / "m" / "m.onnx").write_bytes(b"no graph")
        with pytest.raises(UsageError, match=r"m\.onnx cannot be loaded as onnx"):
            ModelDir(tmp_path / "m").load()
        with pytest.raises(UsageError, match=r"format onnx takes no torch\.nn.Module"):
            ModelDir.save(torch.nn.Linear(1, 1), tmp_path / "n", format="onnx")

    def test_maps_of_probabilities_are_refused(self, tmp_path: Path) -> None:
        node = helper.make_node("ZipMap", ["x"], ["output_probability"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
        kind = helper.make_sequence_type_proto(
            helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
        )
        made = helper.make_model(
            helper.make_graph(
                [node],
                "g",
                [helper.make_tensor_value_info("x", 1, ["rows", 2])],
                [helper.make_value_info("output_probability", kind)],
            ),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)],
        )
        made.ir_version = 8
        with pytest.raises(UsageError, match=r'gives "output_probability" as a list of maps \(ZipMap\)'):
            ModelDir.save(made, tmp_path / "m")


class TestXGBoost:
    @pytest.mark.parametrize(
        ("kind", "data", "target", "options"),
        [
            (xgboost.XGBClassifier, CANCER, MALIGNANT, {}),
            (xgboost.XGBClassifier, CANCER, MALIGNANT, {"objective": "binary:logitraw"}),
            (xgboost.XGBClassifier, pd.DataFrame(DIGITS), DIGIT, {}),
            (xgboost.XGBRegressor, DIABETES, PROGRESSION, {}),
            (xgboost.XGBRegressor, DIABETES, PROGRESSION, {"objective": "count:poisson"}),
        ],
    )
    def test_estimators(self, tmp_path: Path, kind: Any, data: pd.DataFrame, target: Any, options: Any) -> None:
        data = data.rename(columns=str)
        estimator = kind(n_estimators=12, **options).fit(data, target)
        model = ModelDir.save(estimator, tmp_path / "m")
        holes = data.mask(np.random.default_rng(0).random(data.shape) < 0.2)  # a missing value has a branch of its own
        found = answers(model, rows(holes.astype(object).where(holes.notna(), None)))
        if kind is xgboost.XGBRegressor:
            expected = estimator.predict(holes)
            assert [each["prediction"] for each in found] == pytest.approx(expected, rel=1e-6)
            return
        margin = torch.from_numpy(estimator.predict(holes, output_margin=True))
        both = margin.softmax(1) if margin.ndim > 1 else torch.stack([-margin, margin], 1).sigmoid()
        probabilities = both.numpy()
        assert [each["predicted_class"] for each in found] == probabilities.argmax(axis=1).tolist()
        assert [each["confidence"] for each in found] == pytest.approx(probabilities.max(axis=1), abs=1e-6)

    def test_rounds_after_the_best_are_used_as_the_framework_does(self, tmp_path: Path) -> None:
        train = xgboost.DMatrix(DIABETES[:300], label=PROGRESSION[:300])
        held = xgboost.DMatrix(DIABETES[300:], label=PROGRESSION[300:])
        options = {"evals": [(held, "held")], "early_stopping_rounds": 4, "verbose_eval": False}
        booster = xgboost.train({"objective": "reg:squarederror"}, train, 60, **options)
        estimator = xgboost.XGBRegressor(n_estimators=60, early_stopping_rounds=4)
        estimator.fit(DIABETES[:300], PROGRESSION[:300], eval_set=[(DIABETES[300:], PROGRESSION[300:])], verbose=False)
        assert booster.best_iteration + 1 < booster.num_boosted_rounds()
        every, best = booster.predict(held), estimator.predict(DIABETES[300:])
        for index, (model, expected) in enumerate(((booster, every), (estimator, best))):
            found = answers(ModelDir.save(model, tmp_path / f"m{index}"), rows(DIABETES[300:]))
            assert [each["prediction"] for each in found] == pytest.approx(expected, rel=1e-6)

    def test_what_is_refused(self, tmp_path: Path) -> None:
        booster = xgboost.train({"objective": "reg:squarederror"}, xgboost.DMatrix(DIABETES, label=PROGRESSION), 2)
        with pytest.raises(UsageError, match="has the objective reg:squarederror; write task: regression"):
            ModelDir.save(booster, tmp_path / "m", task="classification").load()
        examples = rows(DIABETES[:3])
        examples[1]["bmi"] = 1e39
        found = answers(ModelDir.save(booster, tmp_path / "n"), examples)
        assert [isinstance(each, FailedPrediction) for each in found] == [False, True, False]
        categories = pd.DataFrame({"c": pd.Categorical(["a", "b"] * 20), "x": range(40)})
        estimator = xgboost.XGBRegressor(n_estimators=2, enable_categorical=True).fit(categories, np.arange(40))
        with pytest.raises(UsageError, match="was trained with categorical features"):
            ModelDir.save(estimator, tmp_path / "c")
        (tmp_path / "m" / "bad.json").write_text("{}")
        (tmp_path / "m" / "model.yaml").write_text("{name: m, format: xgboost, weights: bad.json}")
        with pytest.raises(UsageError, match=r"bad\.json cannot be loaded as xgboost") as refused:
            ModelDir(tmp_path / "m").load()
        assert str(refused.value).endswith("bad.json cannot be loaded as xgboost: Invalid cast, from Null to Object")


def test_onnxruntime_sends_no_usage_data(tmp_path: Path) -> None:
    """It keeps the id of a session in TMPDIR if it would send any."""
    code = "from handlers.model.formats import onnx; print(onnx._onnxruntime().__name__)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    assert done.stdout == "onnxruntime\n"
    assert not (tmp_path / ".ses").exists()


def test_an_exported_program_is_not_taken_for_onnx(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 1), (torch.zeros(3, 2),))
    with pytest.raises(UsageError, match=r"save the module itself, with format=.torch_export"):
        ModelDir.save(program, tmp_path / "m")


def test_options_without_a_meaning_are_refused(tmp_path: Path) -> None:
    loaded = ModelDir.save(LinearRegression().fit(DIABETES, PROGRESSION), tmp_path / "m").load()
    assert Predictor(loaded, Placement("auto")).device == torch.device("cpu")
    for placement, message in [
        (
            Placement("cuda"),
            "--device=cuda cannot be used: scikit-learn runs on the CPU only; use --device=cpu or auto",
        ),
        (Placement(precision="bfloat16"), "--precision=bfloat16 has no meaning for a model of format sklearn"),
        (Placement(compile=True), "--compile has no meaning for a model of format sklearn"),
    ]:
        with pytest.raises(UsageError, match=re.escape(message)):
            Predictor(loaded, placement)
    with pytest.raises(UsageError, match="onnxruntime has no CUDA provider"):
        Predictor(ModelDir.save(graph(), tmp_path / "onnx").load(), Placement("cuda"))


def test_a_bad_row_costs_itself(tmp_path: Path) -> None:
    """Halving, as for modules: the encoder of one category refuses a few rows of a thousand."""
    frame, _ = mixed()
    pipeline = mixed_pipeline()
    model = ModelDir.save(pipeline, tmp_path / "m")
    examples = rows(pd.concat([frame] * 4))
    for row in (17, 500, 1199):
        examples[row]["country"] = "?"
    found = answers(model, examples)
    assert [row for row, each in enumerate(found) if isinstance(each, FailedPrediction)] == [17, 500, 1199]


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("sklearn", "skops", "sklearn"), ("onnx", "onnxruntime", "onnx"), ("xgboost", "xgboost", "xgboost")],
)
def test_a_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, package: str, extra: str
) -> None:
    suffix = {"sklearn": ".skops", "onnx": ".onnx", "xgboost": ".ubj"}[format]
    (tmp_path / f"m{suffix}").write_bytes(b"")
    (tmp_path / "model.yaml").write_text(f"{{name: m, format: {format}, weights: m{suffix}}}")
    model = ModelDir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "skops":
        monkeypatch.setitem(sys.modules, "skops.io", None)
    with pytest.raises(UsageError, match=rf"pip install 'torchbeam\[{extra}\]'"):
        load_model(model.spec, tmp_path)


def test_a_torch_model_imports_no_other_framework(tmp_path: Path) -> None:
    ModelDir.save(
        torch.nn.Linear(1, 1), tmp_path / "m", architecture="torch.nn:Linear",
        arguments={"in_features": 1, "out_features": 1}, inputs=[{"name": "x"}],
    )  # fmt: skip
    code = (
        "import sys, torch\nfrom handlers.model.directory import ModelDir\n"
        "from handlers.predict.predictor import Predictor\n"
        f"Predictor(ModelDir({str(tmp_path / 'm')!r}).load()).predict({{'x': torch.ones(2, 1)}})\n"
        "print({'sklearn', 'skops', 'onnxruntime', 'xgboost', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_frames_are_for_models_that_take_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoder frame is for models of format sklearn and onnx"):
        ModelDir.save(
            torch.nn.Linear(1, 1),
            tmp_path / "m",
            architecture="torch.nn:Linear",
            inputs=[{"name": "x", "encoder": "frame"}],
        )
