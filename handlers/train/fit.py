"""The loop of a training, by Lightning. The only module that imports it."""

from __future__ import annotations

import importlib
import logging
import math
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from handlers.errors import TrainingError, UsageError, one_line
from handlers.predict.calling import caller
from handlers.predict.loaded import LoadedModel
from handlers.predict.placement import Placement
from handlers.train.losses import Loss
from handlers.train.rows import Batch, RowTensors
from handlers.train.settings import Epoch, Listener, Settings, best_of, is_finished

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as pl
        from lightning.fabric.plugins.environments.lightning import LightningEnvironment
        from lightning.pytorch.loggers import TensorBoardLogger
except ImportError:
    raise UsageError("training needs lightning; pip install 'torchbeam[train]'") from None
for _name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities"):
    logging.getLogger(_name).setLevel(logging.ERROR)  # whose import sets them to INFO

LAST, BEST = "last.ckpt", "best.ckpt"
WARM_UP = 0.05  # share of all steps
VALIDATION_BATCH = 1024
_HISTORY = "history"
_PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def fit(
    model: LoadedModel,
    loss: Loss,
    train: RowTensors,
    validation: RowTensors,
    settings: Settings,
    folder: Path,
    listener: Listener,
) -> list[Epoch]:
    """Trains a model, from its last checkpoint if there is one, and leaves it with the weights of its best epoch, on the CPU.

    After each epoch the state of the training is in `folder/checkpoints`; a training that is killed and started again
    with the same arguments ends with the same weights.

    Args:
        model: with an `nn.Module`.
        loss: of its outputs.
        train: the rows to train on.
        validation: the rows that decide which epoch is the best.
        settings: how.
        folder: where `checkpoints/` and `logs/` are.
        listener: receives the progress.

    Returns:
        What each epoch came to.

    Raises:
        TrainingError: where the loss is not finite.
        UsageError: where the device is not there, a checkpoint cannot be read, or the model's outputs do not fit.
    """
    device = Placement(settings.device, settings.precision).resolve()
    if settings.precision == "float16" and device.type == "cpu":
        raise UsageError("--precision=float16 trains on a GPU only; use bfloat16")
    checkpoints = folder / "checkpoints"
    history = _history(checkpoints / LAST)
    sampler = _Shuffled(len(train), settings.seed, len(history))
    size = min(settings.batch_size, len(train))
    batches: DataLoader[Any] = DataLoader(train, size, sampler=sampler, collate_fn=_as_it_is, drop_last=True)  # type: ignore[arg-type]
    whole = min(VALIDATION_BATCH, 4 * size)
    held_out: DataLoader[Any] = DataLoader(validation, whole, collate_fn=_as_it_is)  # type: ignore[arg-type]
    task = _Task(model, loss, settings, len(batches), history)
    _try(task, validation)
    if not is_finished(history, settings):
        task.to(device).train()  # Lightning keeps the mode of each module
        with _quiet():
            trainer = pl.Trainer(
                accelerator="gpu" if device.type == "cuda" else "cpu",
                devices=[device.index or 0] if device.type == "cuda" else 1,
                precision=_PRECISIONS[settings.precision],
                max_epochs=settings.epochs,
                gradient_clip_val=settings.gradient_clip or None,
                logger=_logger(settings.logger, folder),
                callbacks=[_Keeper(folder, task, settings, listener)],
                plugins=[LightningEnvironment()],  # never what a cluster's variables suggest
                deterministic="warn",
                num_sanity_val_steps=0,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=min(50, max(1, len(batches))),
                default_root_dir=folder,
            )
            last = checkpoints / LAST if history else None
            try:
                trainer.fit(task, batches, held_out, ckpt_path=last, weights_only=True)
            except SystemExit:  # what Lightning makes of an interrupt
                raise KeyboardInterrupt("continue with --resume") from None
            finally:
                torch.use_deterministic_algorithms(False)
    task.load_state_dict(_load(checkpoints / BEST)["state_dict"])
    task.to("cpu").eval()
    return task.history


class _Task(pl.LightningModule):
    """What Lightning trains: the network with its loss."""

    def __init__(self, model: LoadedModel, loss: Loss, settings: Settings, steps: int, history: list[Epoch]) -> None:
        super().__init__()
        self.network: torch.nn.Module = model.module  # type: ignore[assignment]
        self.loss = loss
        self.history = history
        self._call = caller(model, self.network)
        self._settings = settings
        self._steps = steps
        self._sum = self._rows = self._trained = 0.0

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch."""
        inputs, target = batch
        found: torch.Tensor = self.loss(self._call(inputs, {}), target)
        return found

    def on_train_batch_start(self, _batch: Batch, index: int) -> None:
        """Each epoch draws its own random numbers, so that it does not matter which epochs this process has seen.

        Not in `on_train_epoch_start`: after it some epochs make a new iterator over the rows, which draws a number, too.
        """
        if index == 0:
            seed = _seed(self._settings.seed, self.current_epoch)
            torch.manual_seed(seed)
            np.random.seed(seed % (1 << 32))
            random.seed(seed)
            self._trained = 0.0

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        """The loss; raises `TrainingError` where it is not finite."""
        loss = self(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in epoch {self.current_epoch + 1}; lower --learning_rate (it is "
                f"{self._settings.learning_rate:g}), or look for numbers in the input that are far too large"
            )
        self._trained += value
        self.log("train_loss", value, on_step=True, on_epoch=False, batch_size=len(batch[1]))
        return loss  # type: ignore[no-any-return]

    def on_validation_epoch_start(self) -> None:
        """Starts a sum."""
        self._sum = self._rows = 0.0

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Adds the losses of the rows."""
        self._sum += float(self(batch)) * len(batch[1])
        self._rows += len(batch[1])

    def on_validation_epoch_end(self) -> None:
        """Adds the epoch to the history."""
        validation = self._sum / self._rows
        if not math.isfinite(validation):
            raise TrainingError(
                f"the validation loss is {validation} after epoch {self.current_epoch + 1}; lower --learning_rate (it is "
                f"{self._settings.learning_rate:g})"
            )
        rate = float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        done = Epoch(self.current_epoch + 1, self._trained / self._steps, validation, rate)
        self.history.append(done)
        self.log_dict(
            {"validation_loss": done.validation_loss, "epoch_train_loss": done.train_loss, "learning_rate": rate}
        )

    def configure_optimizers(self) -> Any:
        """AdamW, and a cosine schedule after a linear warm-up; biases and norms do not decay."""
        decayed = [each for each in self.network.parameters() if each.requires_grad and each.dim() > 1]
        others = [each for each in self.network.parameters() if each.requires_grad and each.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": self._settings.weight_decay},
            {"params": others, "weight_decay": 0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self._settings.learning_rate)
        total = max(1, self._steps * self._settings.epochs)
        warm = max(1, round(WARM_UP * total))

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain numbers, which load with `weights_only`."""
        checkpoint[_HISTORY] = [asdict(epoch) for epoch in self.history]


class _Keeper(pl.Callback):
    """Saves the state after each epoch, under its name only once it is whole, logs it, and ends the training."""

    def __init__(self, folder: Path, task: _Task, settings: Settings, listener: Listener) -> None:
        self._checkpoints = folder / "checkpoints"
        self._log = folder / "logs" / "metrics.csv" if settings.logger == "csv" else None
        self._task = task
        self._settings = settings
        self._listener = listener

    def on_train_batch_end(self, trainer: Any, _module: Any, outputs: Any, _batch: Any, index: int) -> None:
        """Passes the progress on."""
        self._listener.step(trainer.current_epoch + 1, index + 1, trainer.num_training_batches, float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: Any, _module: Any) -> None:
        """Saves, and decides whether to go on."""
        history = self._task.history
        best = best_of(history)
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        new = self._checkpoints / f"_{LAST}"
        trainer.save_checkpoint(new)
        if best is history[-1]:
            copy = self._checkpoints / f"_{BEST}"
            shutil.copyfile(new, copy)
            copy.replace(self._checkpoints / BEST)
        new.replace(self._checkpoints / LAST)
        if self._log is not None:
            self._log.parent.mkdir(exist_ok=True)
            self._log.write_text(_table(history))
        self._listener.epoch(history[-1], best)
        if is_finished(history, self._settings):
            trainer.should_stop = True


class _Shuffled(Sampler[int]):
    """Row indices in an order that depends on the seed and the epoch alone."""

    def __init__(self, rows: int, seed: int, epoch: int) -> None:
        self._rows = rows
        self._seed = seed
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_seed(self._seed, self._epoch))
        return iter(torch.randperm(self._rows, generator=generator).tolist())

    def __len__(self) -> int:
        return self._rows


def _try(task: _Task, rows: RowTensors) -> None:
    """Calls the model once, so that what does not fit is one line before the training."""
    task.eval()
    try:
        with torch.no_grad():
            task(rows.__getitems__(list(range(min(2, len(rows))))))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the model fails on the first rows: {type(error).__name__}: {one_line(error)}") from error


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % (1 << 63)


def _history(checkpoint: Path) -> list[Epoch]:
    return [Epoch(**epoch) for epoch in _load(checkpoint)[_HISTORY]] if checkpoint.exists() else []


def _load(checkpoint: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if _HISTORY not in found:
            raise KeyError(_HISTORY)
    except Exception as error:
        raise UsageError(
            f"{checkpoint} cannot be read as a checkpoint ({type(error).__name__}: {one_line(error, 200)}); start again "
            "with --overwrite"
        ) from None
    return found


def _table(history: list[Epoch]) -> str:
    """The epochs as CSV; all of them, also of a training that was continued."""
    names = [each.name for each in fields(Epoch)]
    return "".join(",".join(map(str, row)) + "\n" for row in [names, *map(astuple, history)])


def _logger(name: str, folder: Path) -> Any:
    if name == "csv":  # which `_Keeper` writes; Lightning's logger deletes what an interrupted training has logged
        return False
    return TensorBoardLogger(folder, name="logs", version="")


def check_logger(name: str) -> None:
    """Raises `UsageError` where the logger `name` is not installed."""
    if name == "tensorboard":
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise UsageError("--logger=tensorboard needs tensorboard; pip install 'torchbeam[train]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the hints and warnings of Lightning and PyTorch to itself; our own lines say what matters."""
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            if before is None:  # set by Lightning for deterministic algorithms
                with suppress(KeyError):
                    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
