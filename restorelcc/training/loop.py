"""The only training loop: few parameters added to a frozen model, AdamW, linear decay.

accelerate runs it: on one device without changes, on several under `accelerate launch` or torchrun. Each process has
its share of every batch. A step is the same whatever the number of processes and of parts, up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from restorelcc.base.errors import StageFailed
from restorelcc.base.progress import progress
from restorelcc.training.config import FitConfig

_SAVE_AFTER = 60.0  # seconds of training that an interruption may cost, however few steps they are
_SAVING = 0.05  # share of the time that may go into that
_MANY = 2**20  # trained numbers from which one pass over memory a step, and not one for each of its operations, counts


_OF_THE_START = ("initial_loss", "valid_loss")


def finite_or_none(value: float | None) -> float | None:
    """The number, where it is a finite one: JSON has no others."""
    return value if value is not None and math.isfinite(value) else None


@dataclass
class Fitted:
    """One run: its rate, the validation loss before it and after every epoch, the training losses, what was kept."""

    learning_rate: float
    initial_loss: float = math.nan
    valid_losses: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    steps: int = 0  # optimizer steps taken
    valid_loss: float = math.nan  # of what was kept: the last epoch, or with `patience` the best one
    epoch_loss: float = 0.0  # summed training loss of the epoch under way
    stopped: bool = False  # ended, by the last step or early

    def as_json(self) -> dict:
        """The run as a document has it: None for a loss that is no finite number."""
        values = {name: value for name, value in asdict(self).items() if name not in ("epoch_loss", "stopped")}
        return {name: finite_or_none(value) if isinstance(value, float) else value for name, value in values.items()}

    def as_progress(self) -> dict:
        """What goes on with an interrupted run; None for the losses of a start that are no finite numbers."""
        return asdict(self) | {name: finite_or_none(getattr(self, name)) for name in _OF_THE_START}

    @classmethod
    def from_progress(cls, saved: dict) -> Fitted:
        """The run that `as_progress` was of; what was no finite number is infinite."""
        return cls(**saved | {name: math.inf for name in _OF_THE_START if saved[name] is None})


class Diverged(StageFailed):
    """A loss or gradient of a run is no longer a finite number. `found` says where, without the advice."""

    def __init__(self, found: str, kept: str = "") -> None:
        super().__init__(f"{found}: lower the learning_rates{kept}")
        self.found = found


class Store(Protocol):
    """Where a run's state is kept, so that an interrupted run continues there."""

    def load(self) -> tuple[dict[str, Tensor], dict] | None: ...
    def save(self, tensors: dict[str, Tensor], progress: dict) -> None: ...
    def __str__(self) -> str: ...


class Stores(Protocol):
    """A store for each of several runs, by name."""

    def of(self, run: str) -> Store: ...


@dataclass(frozen=True)
class Task:
    """What is trained on: summed loss of some examples, tokens that carry loss in each, and the validation loss.

    parts: which examples of a batch run together; the sum over the parts is the batch's loss.
    """

    summed_loss: Callable[[list[int]], Tensor]
    tokens: list[int]
    validate: Callable[[], float]
    loss_scale: float = 1.0  # see models.runtime.loss_scale
    parts: Callable[[list[int]], list[list[int]]] = lambda rows: [rows]


def fit(
    trained: nn.Module, task: Task, config: FitConfig, *, learning_rate: float, title: str, store: Store | None = None
) -> Fitted:
    """Train the parameters of `trained` that require a gradient; with `store`, go on from the last saved state.

    An interrupted and continued run gives the same bits as one that was not. Raises Diverged, naming the step, when the
    loss or its gradient is no longer a finite number, and StageFailed when another of several processes is gone.
    """
    run = _Run(trained, task, config, learning_rate, title, store)
    with _together(run.accelerator, title):
        return run.finish()


def validated(trained: nn.Module, task: Task, title: str) -> float:
    """The validation loss with the parameters of `trained` as they are, the same number in every process."""
    accelerator = _accelerator(trained)
    with _together(accelerator, title):
        return _validated(task, accelerator)


def _accelerator(trained: nn.Module) -> Accelerator:
    return Accelerator(cpu=next(trained.parameters()).device.type == "cpu")


def _validated(task: Task, accelerator: Accelerator) -> float:
    """The validation loss as the first process found it: all of them decide by the same number."""
    loss = torch.tensor(task.validate(), dtype=torch.float64, device=accelerator.device)
    return float(broadcast(loss))


@contextmanager
def _together(accelerator: Accelerator, title: str) -> Iterator[None]:
    """Inside, what fails because another process is gone is said in one sentence."""
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not _from_the_network(error):
            raise
        raise StageFailed(
            f"{title}: another of the {accelerator.num_processes} processes has ended, its message above says "
            "why; run the same command again, and training continues from its last saved state"
        ) from error


def _from_the_network(error: RuntimeError) -> bool:
    """Whether an error is that of a message between processes; gloo's has no class of its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


class _Run:
    def __init__(
        self, trained: nn.Module, task: Task, config: FitConfig, rate: float, title: str, store: Store | None
    ) -> None:
        self.task, self.config, self.title, self.store = task, config, title, store
        self.accelerator = _accelerator(trained)
        self.named = {name: part for name, part in trained.named_parameters() if part.requires_grad}
        numbers = sum(part.numel() for part in self.named.values())
        one_pass = numbers >= _MANY and self.accelerator.device.type == "cpu"  # a GPU has its own way
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=rate, weight_decay=0.0, fused=one_pass or None)
        self.state = Fitted(rate)
        self.best = {name: part.detach().clone() for name, part in self.named.items()}
        self.per_epoch = math.ceil(len(task.tokens) / config.batch_size)
        self.total = config.epochs * self.per_epoch
        self.saved_step = 0
        self.saved, self.save_seconds = time.monotonic(), 0.0  # when the state was last saved, and how long that took

    def finish(self) -> Fitted:
        resumed = self.store.load() if self.store is not None else None
        if resumed is not None:
            self._restore(*resumed)
        if math.isnan(self.state.initial_loss):
            self.state.initial_loss = self.state.valid_loss = _validated(self.task, self.accelerator)
        bar = progress(range(self.total), self.title, "steps")
        bar.update(self.state.steps)
        for batch in self._remaining():
            if self.state.stopped:
                break
            self._step(batch)
            bar.update()
            if self.state.steps % self.per_epoch == 0:
                self._end_epoch(bar)
            elif self.state.steps % self.config.checkpoint_steps == 0 or self._long_since_saved():
                self._save()
        bar.close()
        with torch.no_grad():
            for name, part in self.named.items():
                part.copy_(self.best[name])
        return self.state

    def _remaining(self) -> Iterator[list[int]]:
        """The batches still to do; the order of every epoch is drawn from the seed, whether or not it was cut off."""
        generator = torch.Generator().manual_seed(self.config.seed)
        size = self.config.batch_size
        for epoch in range(self.config.epochs):
            order = torch.randperm(len(self.task.tokens), generator=generator).tolist()
            for number in range(self.per_epoch):
                if epoch * self.per_epoch + number >= self.state.steps:
                    yield order[number * size : (number + 1) * size]

    def _parts(self, batch: list[int]) -> Iterator[tuple[list[int], float]]:
        """This process's examples of a batch in parts, and what the loss of each part counts.

        All processes have the same number of parts, since weights that are spread over them take them all to run one:
        a process that has no example left runs one that counts nothing.
        """
        processes = self.accelerator.num_processes
        size = math.ceil(math.ceil(len(batch) / processes) / self.config.accumulate)
        of_each = [self._parts_of(batch[process::processes], size) for process in range(processes)]
        own = of_each[self.accelerator.process_index]
        for number in range(max(map(len, of_each))):
            yield (own[number], 1.0) if number < len(own) else (batch[:1], 0.0)

    def _parts_of(self, share: list[int], size: int) -> list[list[int]]:
        return [part for start in range(0, len(share), size) for part in self.task.parts(share[start : start + size])]

    def _step(self, batch: list[int]) -> None:
        tokens = sum(self.task.tokens[number] for number in batch)
        device = next(iter(self.named.values())).device
        summed = torch.zeros((), device=device)
        self.optimizer.zero_grad()
        for rows, counts in self._parts(batch):
            part_loss = counts * self.task.summed_loss(rows) / tokens
            if part_loss.requires_grad:
                self.accelerator.backward(part_loss * self.task.loss_scale)
            summed += part_loss.detach().to(device)
        loss, norm = self._gathered(summed)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the loss's gradient is {norm}"
            raise self._diverged(what, self.state.steps + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.state.learning_rate * (1 - self.state.steps / self.total)
        self.optimizer.step()
        self.state.steps += 1
        self.state.epoch_loss += loss * len(batch)

    def _gathered(self, loss: Tensor) -> tuple[float, float]:
        """The batch's loss and the norm of its gradient, over all devices; the gradient is clipped."""
        for part in self.named.values():
            if part.grad is None:
                part.grad = torch.zeros_like(part)
            if self.accelerator.num_processes > 1:
                part.grad = self.accelerator.reduce(part.grad, reduction="sum")
            if self.task.loss_scale != 1.0:
                part.grad /= self.task.loss_scale
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, reduction="sum")
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.config.max_gradient_norm)
        return loss.item(), norm.item()

    def _diverged(self, what: str, step: int) -> Diverged:
        kept = ""
        if self.saved_step:
            kept = f"; the last good state, of step {self.saved_step}, is kept in {self.store}"
        return Diverged(f"{self.title}: {what} at step {step} of {self.total}", kept)

    def _end_epoch(self, bar: object) -> None:
        state = self.state
        state.train_losses.append(state.epoch_loss / len(self.task.tokens))
        state.epoch_loss = 0.0
        state.valid_losses.append(_validated(self.task, self.accelerator))
        if not math.isfinite(state.valid_losses[-1]):
            raise self._diverged(f"the validation loss is {state.valid_losses[-1]}", state.steps)
        patience = self.config.patience
        if patience is None or state.valid_losses[-1] <= min(state.valid_losses):
            self.best = {name: part.detach().clone() for name, part in self.named.items()}
            state.valid_loss = state.valid_losses[-1]
        since_best = len(state.valid_losses) - 1 - state.valid_losses.index(min(state.valid_losses))
        state.stopped = state.steps == self.total or (patience is not None and since_best >= patience)
        bar.set_postfix_str(f"loss {state.train_losses[-1]:.3f}, validation {state.valid_losses[-1]:.3f}")  # type: ignore[attr-defined]
        self._save()

    def _long_since_saved(self) -> bool:
        return time.monotonic() - self.saved > max(_SAVE_AFTER, self.save_seconds / _SAVING)

    def _save(self) -> None:
        if self.store is None or not self.accelerator.is_main_process:
            return
        started = time.monotonic()
        tensors: dict[str, Tensor] = {f"best.{name}": part for name, part in self.best.items()}
        if not self.state.stopped:  # nothing goes on from the end of a run
            tensors |= {f"now.{name}": part for name, part in self.named.items()}
            for name, part in self.named.items():
                for key, value in self.optimizer.state.get(part, {}).items():
                    tensors[f"adam.{key}.{name}"] = value
        self.saved_step = self.state.steps
        # safetensors refuses tensors that share memory: each is saved as a copy of its own.
        self.store.save(
            {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, self.state.as_progress()
        )
        self.saved = time.monotonic()
        self.save_seconds = self.saved - started

    def _restore(self, tensors: dict[str, Tensor], saved: dict) -> None:
        self.state = Fitted.from_progress(saved)
        self.saved_step = self.state.steps
        with torch.no_grad():
            for name, part in self.named.items():
                self.best[name] = tensors[f"best.{name}"].to(part)
                part.copy_(tensors.get(f"now.{name}", self.best[name]))
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    if (value := tensors.get(f"adam.{key}.{name}")) is not None:
                        self.optimizer.state[part][key] = value if key == "step" else value.to(part)
