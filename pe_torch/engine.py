"""One training step and one prediction; state out to and in from NumPy."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pe_core.data import Batch
from pe_core.encodings.additive import OverLength
from pe_core.model.config import ComputeConfig, ModelConfig
from pe_core.model.parameters import parameters
from pe_core.training.config import TrainConfig
from pe_core.training.data_checks import check_batch
from pe_core.training.predictor import BATCH_SIZE, Predictor
from pe_torch.encoder import SequenceClassifier
from pe_torch.layout import canonical_variables
from pe_torch.optimizer import make_optimizer
from pe_torch.weights import load_arrays, to_arrays

# torch holds the moments under other names than the canonical ones.
MOMENTS: Final = {"m": "exp_avg", "v": "exp_avg_sq"}


class Engine:
    """A model in training, or ready to predict.

    Args:
        config: what the model is.
        arrays: its weights.
        train: what the run is.
        compute: how it is computed.
        total_steps: steps of the whole run, for the schedule.
        device: where it runs; the GPU when there is one, when None.
    """

    def __init__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, np.ndarray],
        train: TrainConfig,
        compute: ComputeConfig,
        total_steps: int,
        device: str | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = SequenceClassifier(config, seed=train.seed, compute=compute)
        load_arrays(self.model, arrays)
        self.model.to(self.device)
        self._live = list(self.model.parameters())
        self.optimizer = make_optimizer(self.model, config, train, total_steps)
        self.optimizer.finite = torch.tensor(True, device=self.device)
        self.dtype: torch.dtype = getattr(torch, compute.array_dtype)

    @staticmethod
    def set_threads(count: int) -> None:
        """Compute with so many threads on the processor."""
        torch.set_num_threads(count)

    def train_step(self, batch: Batch, step: int) -> Tensor:
        """Take one step and return (loss, correct, weight, gradient norm) on the device, not waited
        for.

        A loss or norm that is not finite leaves the weights as they were, in this step and in all
        that follow.
        """
        self._train(True)
        loss, metrics = self._loss(batch, step)
        self._drop_gradients()
        loss.backward()
        self.optimizer.finite &= loss.detach().isfinite()
        self.optimizer.step()
        return torch.cat([metrics, self.optimizer.gradient_norm[None]])

    def evaluate(self, batch: Batch) -> Tensor:
        """Return (loss, correct, weight, 0) of a batch on the device, not waited for."""
        self._train(False)
        with torch.inference_mode():
            metrics = self._loss(batch, None)[1]
            return functional.pad(metrics, (0, 1))

    def predict(self, batch: Batch) -> np.ndarray:
        """Return the logits of a batch, (batch, num_classes)."""
        self._train(False)
        with torch.inference_mode():
            return (
                self.model(
                    self._tensor(batch.inputs),
                    mask=self._tensor(batch.mask),
                    positions=self._tensor(batch.positions),
                )
                .cpu()
                .numpy()
            )

    def read(self, metrics: Sequence[Tensor]) -> np.ndarray:
        """Wait for metrics and return them as rows of float64."""
        return torch.stack(list(metrics)).cpu().double().numpy()

    def gradients(
        self, batch: Batch, step: int | None = None
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Return the loss and the gradient of every weight, in evaluation mode, or with the dropout
        of a step.
        """
        self._train(step is not None)
        self._drop_gradients()
        loss = self._loss(batch, step)[0]
        loss.backward()
        found = {
            name: weight.grad.cpu().numpy().copy()
            for name, (weight, _) in canonical_variables(self.model).items()
            if weight.grad is not None
        }
        self._drop_gradients()
        return loss.item(), {item.name: found[item.name] for item in parameters(self.config)}

    def taps(self, batch: Batch, step: int | None = None) -> dict[str, np.ndarray]:
        """Return the named intermediates of a forward pass and the loss, in evaluation mode, or
        with the dropout of a step.
        """
        self._train(step is not None)
        taps: dict[str, Any] = {}
        with torch.inference_mode():
            taps["loss"] = self._loss(batch, step, taps)[0]
            return {name: value.to(self.dtype).cpu().numpy() for name, value in taps.items()}

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights under their canonical names."""
        return to_arrays(self.model)

    def state(self) -> dict[str, np.ndarray]:
        """Return weights, moments and the count of steps, `param/<name>`, `adam/m/<name>`,
        `adam/v/<name>`, `adam/count`.
        """
        live = canonical_variables(self.model)
        arrays = {f"param/{name}": array for name, array in self.weights().items()}
        for kind, key in MOMENTS.items():
            for item in parameters(self.config):
                moment = self.optimizer.state[live[item.name][0]].get(key)
                arrays[f"adam/{kind}/{item.name}"] = (
                    np.zeros(item.shape, arrays[f"param/{item.name}"].dtype)
                    if moment is None
                    else moment.cpu().numpy().copy()
                )
        return arrays | {"adam/count": np.array(self.optimizer.param_groups[0]["count"], np.int64)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state."""
        load_arrays(
            self.model,
            {
                name.removeprefix("param/"): array
                for name, array in arrays.items()
                if name.startswith("param/")
            },
        )
        count = int(arrays["adam/count"])
        for group in self.optimizer.param_groups:
            group["count"] = count
        for name, (weight, _) in canonical_variables(self.model).items():
            moments = {
                key: torch.from_numpy(np.array(arrays[f"adam/{kind}/{name}"])).to(weight)
                for kind, key in MOMENTS.items()
            }
            self.optimizer.state[weight] = {
                "step": torch.tensor(float(count), device=self.device)
            } | moments
        self.optimizer.finite.fill_(True)

    def _train(self, training: bool) -> None:
        # Module.train() walks every module, at every step.
        if self.model.training is not training:
            self.model.train(training)

    def _drop_gradients(self) -> None:
        # What zero_grad() of an optimizer or a module does, without a walk through either.
        for weight in self._live:
            weight.grad = None

    def _loss(
        self, batch: Batch, step: int | None, taps: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        check_batch(self.config, batch)
        logits = self.model(
            self._tensor(batch.inputs),
            mask=self._tensor(batch.mask),
            positions=self._tensor(batch.positions),
            taps=taps,
            dropout_step=step,
        )
        labels, weights = self._tensor(batch.labels), self._tensor(batch.weights).to(self.dtype)
        total = weights.sum()
        loss = (
            torch.dot(functional.cross_entropy(logits, labels, reduction="none"), weights) / total
        )
        with torch.no_grad():
            correct = torch.dot((logits.argmax(dim=-1) == labels).to(self.dtype), weights)
            return loss, torch.stack([loss.detach(), correct, total])

    def _tensor(self, array: np.ndarray | None) -> Any:
        if array is None:
            return None
        if array.dtype.kind == "u" or not array.dtype.isnative:
            array = array.astype(np.int64 if array.dtype.kind in "iu" else array.dtype.kind + "4")
        tensor = torch.from_numpy(array)
        integer = array.dtype.kind == "i" and tensor.dtype != torch.int64
        return (tensor.long() if integer else tensor).to(self.device, non_blocking=True)


def load_predictor(
    directory: str | os.PathLike[str],
    *,
    compute: ComputeConfig | None = None,
    device: str | None = None,
    batch_size: int = BATCH_SIZE,
    over_length: OverLength | None = None,
) -> Predictor:
    """Return what classifies raw data, from a model directory or the folder of a finished run.

    `predict(x)` gives the names of classes, `predict_proba(x)` their probabilities; the
    standardisation that the folder holds is applied.

    Args:
        directory: of the model or the run.
        compute: how the model is computed.
        device: where it runs; the GPU when there is one, when None.
        batch_size: sequences computed at a time.
        over_length: what a learned table does with positions beyond it, "clip", "wrap" or
            "interpolate"; as the model says when None.

    Raises:
        FileNotFoundError: a file is missing, or the run has no model yet.
        ValueError: a file is damaged or does not fit its config.
    """
    return Predictor.load(
        Engine,
        directory,
        compute=compute,
        device=device,
        batch_size=batch_size,
        over_length=over_length,
    )
