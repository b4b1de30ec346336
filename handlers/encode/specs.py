"""The inputs of `model.yaml`: one class for each encoder, chosen by the field `encoder`. Imports neither torch nor Arrow.

A new encoder is a class here, in `AnyInput`, and the module that the class names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    TypeAdapter,
    model_validator,
)

TensorDtype = Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
PositiveInt = Annotated[int, Field(gt=0)]
Shape = tuple[Annotated[int, Field(gt=0)], ...]


class InputSpec(BaseModel):
    """What the inputs of all encoders have in common.

    Attributes:
        MODULE: the module of the encoder; its function `bind` makes a `BoundInput` of a spec.
        name: the name of the parameter of `forward`; free where there is only one.
        columns: column names and patterns (`f_*`), in order; by default the column named like the input.
        encoder: the name of the encoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    MODULE: ClassVar[str]

    name: str
    columns: tuple[str, ...] = ()
    encoder: str

    @property
    def patterns(self) -> tuple[str, ...]:
        """The column names and patterns that this input is made of."""
        return self.columns or (self.name,)

    @property
    def takes_fractions(self) -> bool:
        """Whether its columns hold numbers that may have a fraction."""
        return False

    def given(self) -> dict[str, Any]:
        """The fields as `model.yaml` holds them, without those that have their default."""
        return self.model_dump(exclude_defaults=True) | ({"encoder": self.encoder} if self.encoder != "numeric" else {})


class MatrixInput(InputSpec):
    """An input whose columns become a tensor of (rows, *shape) of one dtype.

    Attributes:
        dtype: of the tensor; by default that of the exported model, else that of the encoder.
        shape: of one row; `[number of values]` by default, `[]` for a single value without an axis.
        fill: replaces a null; without it a null is a row error.
    """

    dtype: TensorDtype | None = None
    shape: Shape | None = None
    fill: float | int | str | None = None

    @property
    def allows_nonfinite(self) -> bool:
        """Whether NaN and infinity may go into the model."""
        return False

    @property
    def codes(self) -> int | None:
        """The number of categories; None for an input of numbers."""
        return None

    @property
    def unknown_code(self) -> int | None:
        """The code of a value that is not one of the categories."""
        return None


class NumericInput(MatrixInput):
    """Numbers, flags, dates and lists of them; float32 by default.

    Attributes:
        allow_nonfinite: whether NaN and infinity may go into the model; if not, they are row errors.
        timestamp: the unit since 1970-01-01 UTC in which dates and timestamps are counted.
    """

    MODULE = "handlers.encode.numeric"

    encoder: Literal["numeric"] = "numeric"
    allow_nonfinite: bool = False
    timestamp: Literal["s", "ms", "us", "ns", "days"] | None = None

    @model_validator(mode="after")
    def _fill_is_a_number(self) -> NumericInput:
        if isinstance(self.fill, str):
            raise ValueError("fill of a numeric input must be a number")
        return self

    @property
    def allows_nonfinite(self) -> bool:
        """Whether NaN and infinity may go into the model."""
        return self.allow_nonfinite

    @property
    def takes_fractions(self) -> bool:
        """Whether its columns hold numbers that may have a fraction."""
        return "float" in (self.dtype or "float32")


class CategoricalInput(MatrixInput):
    """Values become codes; int64 by default.

    Attributes:
        categories: the values; the code of a value is its index in this list.
        num_categories: for columns that hold codes already: codes must be in 0 … num_categories - 1.
        unknown: the code of a value that `categories` does not have; without it such a value is a row error.
    """

    MODULE = "handlers.encode.categorical"

    encoder: Literal["categorical"] = "categorical"
    categories: tuple[StrictStr, ...] | tuple[StrictInt, ...] | tuple[StrictBool, ...] | None = None
    num_categories: Annotated[int, Field(gt=0)] | None = None
    unknown: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _categories(self) -> CategoricalInput:
        if (self.categories is None) == (self.num_categories is None):
            raise ValueError("a categorical input needs either categories or num_categories")
        if self.categories is not None:
            if not self.categories:
                raise ValueError("categories is empty")
            if len(set(self.categories)) != len(self.categories):
                raise ValueError("categories contains a value twice")
            if self.fill is not None and self.fill not in self.categories:
                raise ValueError("fill must be one of the categories")
        codes = range(self.num_categories or 0)
        if codes and self.fill is not None and self.fill not in codes:
            raise ValueError(f"fill must be a code in 0 … {codes[-1]}")
        return self

    @property
    def codes(self) -> int:
        """The number of categories."""
        return len(self.categories or ()) or self.num_categories or 0

    @property
    def unknown_code(self) -> int | None:
        """The code of a value that is not one of the categories."""
        return self.unknown


class TextInput(InputSpec):
    """Columns of text become tokens: one column, two that make a pair, or any number that `join` puts together.

    Attributes:
        tokenizer: the folder of the tokenizer, inside the model directory.
        max_length: maximum tokens, special ones included; by default the limit of the model or the tokenizer.
        join: separator between the columns of one text; without it two columns are a pair.
        prefix: put before every text, as some models were trained (`query: `).
        fill: replaces a null; without it a null is a row error.
    """

    MODULE = "handlers.encode.text"

    encoder: Literal["text"] = "text"
    tokenizer: str = "."
    max_length: Annotated[int, Field(ge=2)] | None = None
    join: str | None = None
    prefix: str = ""
    fill: str | None = None

    @model_validator(mode="after")
    def _inside(self) -> TextInput:
        if PurePosixPath(self.tokenizer).is_absolute() or ".." in PurePosixPath(self.tokenizer).parts:
            raise ValueError(f'tokenizer must name a folder in the model directory, not "{self.tokenizer}"')
        return self


class ImageInput(InputSpec):
    """A column of image files, as bytes or paths, becomes float32 of (rows, channels, height, width).

    Attributes:
        resize: the shorter side in pixels, or height and width.
        crop: height and width of the middle that is kept; one number for both.
        interpolation: of `resize`, with antialiasing.
        mode: `RGB`, or `L` for one channel of grey.
        scale: what pixels of 0 … 255 are multiplied by.
        mean: one number per channel, subtracted after scaling; needs `std`.
        std: one number per channel; the difference is divided by it.
        max_pixels: a larger image is a row error; it is not decoded.
    """

    MODULE = "handlers.encode.image"

    encoder: Literal["image"] = "image"
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mode: Literal["RGB", "L"] = "RGB"
    scale: Annotated[float, Field(gt=0)] = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    max_pixels: PositiveInt = 50_000_000

    @model_validator(mode="after")
    def _sizes(self) -> ImageInput:
        if self.crop is None and not isinstance(self.resize, tuple):
            raise ValueError(
                "an image input needs crop, or resize as [height, width], so that all images have one size"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values; mode {self.mode} has {self.channels} channels")
        return self

    @property
    def channels(self) -> int:
        """How many channels the tensor has."""
        return 3 if self.mode == "RGB" else 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the tensor."""
        size = self.crop if self.crop is not None else self.resize
        return size if isinstance(size, tuple) else (int(size or 0), int(size or 0))


class SequenceInput(InputSpec):
    """List columns become steps: (rows, steps, features), one column a feature, padded to the longest row of a call.

    With `categories` or `num_categories` steps are codes: (rows, steps) int64 of a single column.

    Attributes:
        max_length: maximum steps; the last ones of a longer row are kept.
        min_length: minimum steps; a shorter row is a row error.
        pad: the side on which rows are padded: `left` (before the start) or `right`.
        pad_value: the value of padding.
        mask: the model input that marks padding: `lengths` (int64 of (rows,)), or any other name for a mask of (rows, steps).
        fill: replaces a null step; without it a null is a row error.
        allow_nonfinite: whether NaN and infinity may go into the model.
        categories: as of a categorical input.
        num_categories: as of a categorical input.
        unknown: as of a categorical input.
    """

    MODULE = "handlers.encode.sequence"

    encoder: Literal["sequence"] = "sequence"
    max_length: PositiveInt | None = None
    min_length: Annotated[int, Field(ge=0)] = 1
    pad: Literal["left", "right"] = "right"
    pad_value: float = 0
    mask: Annotated[str, Field(min_length=1)] | None = None
    fill: float | int | str | None = None
    allow_nonfinite: bool = False
    categories: tuple[StrictStr, ...] | tuple[StrictInt, ...] | None = None
    num_categories: PositiveInt | None = None
    unknown: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _steps(self) -> SequenceInput:
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(f"max_length {self.max_length} is less than min_length {self.min_length}")
        if self.step.encoder == "categorical" and not float(self.pad_value).is_integer():
            raise ValueError("pad_value of codes must be a whole number")
        return self

    @property
    def step(self) -> MatrixInput:
        """What a single step is: a number, or a value with a code."""
        if self.categories is None and self.num_categories is None:
            if self.unknown is not None:
                raise ValueError("unknown needs categories or num_categories")
            return NumericInput(name=self.name, shape=(), fill=self.fill, allow_nonfinite=self.allow_nonfinite)
        return CategoricalInput(
            name=self.name,
            shape=(),
            fill=self.fill,
            categories=self.categories,
            num_categories=self.num_categories,
            unknown=self.unknown,
        )

    @property
    def takes_fractions(self) -> bool:
        """Whether its columns hold numbers that may have a fraction."""
        return self.step.takes_fractions


class FrameInput(InputSpec):
    """Columns as they are, text included, for a model that takes a data frame (formats sklearn and onnx)."""

    MODULE = "handlers.encode.frame"

    encoder: Literal["frame"] = "frame"


def _encoder_of(value: Any) -> Any:
    """The name of the encoder of a spec, or of the mapping that it is made of; numeric where none is named."""
    return value.get("encoder", "numeric") if isinstance(value, Mapping) else getattr(value, "encoder", None)


AnyInput = Annotated[
    Annotated[NumericInput, Tag("numeric")]
    | Annotated[CategoricalInput, Tag("categorical")]
    | Annotated[TextInput, Tag("text")]
    | Annotated[ImageInput, Tag("image")]
    | Annotated[SequenceInput, Tag("sequence")]
    | Annotated[FrameInput, Tag("frame")],
    Discriminator(_encoder_of),
]

SPECS: dict[str, type[InputSpec]] = {
    "numeric": NumericInput,
    "categorical": CategoricalInput,
    "text": TextInput,
    "image": ImageInput,
    "sequence": SequenceInput,
    "frame": FrameInput,
}

_ADAPTER: TypeAdapter[InputSpec] = TypeAdapter(AnyInput)


def input_spec(**fields: Any) -> InputSpec:
    """The spec of an input from its fields, of the class that its `encoder` names (numeric by default).

    Raises:
        pydantic.ValidationError: for an unknown, missing or wrong field.
    """
    return _ADAPTER.validate_python(fields)
