"""Trainer that stops at the first non-finite number, and saves what is needed to see why."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from polydistill.artefacts import artefact
from polydistill.disk import write_json
from polydistill.errors import DiskError, NumericsError
from polydistill.processes import process_index
from polydistill.training.checkpoints import mark_complete

FOLDER = "nonfinite-step-{step}"
# Examples named in the message; batch.json has all.
SHOWN = 3
# A micro-batch or a part of one; a step's micro-batches with their number of items.
Batch = dict[str, Any]
Samples = tuple[list[Batch], Any]
# Where an example comes from: language, epoch, id.
Origin = dict[str, int | str]


class WatchedTrainer(Trainer):
    """Trainer that marks complete checkpoints, and stops at a loss or gradient that is NaN or infinite.

    evidence  folder for the step that made it stop; by default the checkpoints' parent, for other settings
              empty the checkpoints' own
    """

    def __init__(self, *, evidence: Path | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.evidence = evidence or Path(str(self.args.output_dir)).parent
        self.add_callback(_FiniteGradients(self))
        # The current step's micro-batches, or their parts.
        self._batches: Sequence[Batch] = ()

    def get_batch_samples(self, *arguments: object, **keywords: object) -> Samples:
        """The micro-batches of a step."""
        samples: Samples = super().get_batch_samples(*arguments, **keywords)
        self._batches = [part for batch in samples[0] for part in batch.get("parts", [batch])]
        return samples

    def check(self, loss: Tensor) -> None:
        """Raise NumericsError, as `stop` does, if a micro-batch's loss is not finite."""
        value = float(loss.detach())
        if not math.isfinite(value):
            self.stop(f"the loss is {value}")

    def stop(self, what: str, *, together: bool = False) -> NoReturn:
        """Save the weights and this process's batches of the step; raise NumericsError, which names the
        folder.

        together  whether every process stops here, and waits until all have written
        """
        step = self.state.global_step
        folder = self.evidence / FOLDER.format(step=step)
        if rank := process_index():
            folder = folder.with_name(f"{folder.name}-process-{rank}")
        examples = [example for batch in self._batches for example in self._examples(batch)]
        ids = ", its examples' ids" if examples else ""
        saved = f"that batch{ids} and the weights are in {folder}"
        try:
            self._leave(folder, {"step": step, "what": what, "examples": examples})
        except DiskError as error:
            # A full disk must not hide the cause.
            saved = f"the batch could not be saved ({error.reason})"
        if together:
            self.accelerator.wait_for_everyone()
        raise NumericsError(
            "training",
            None,
            f"{what} at step {step}{_named(examples)}; {saved}",
            "lower training.learning_rate, lengthen warm-up, or set training.bf16: false; checkpoints stay",
        )

    def _leave(self, folder: Path, record: dict[str, object]) -> None:
        with artefact(folder, {"step": record["step"], "what": record["what"]}) as partial:
            model: PreTrainedModel = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(partial)
            for index, batch in enumerate(self._batches):
                tensors = {
                    name: value.detach().cpu().contiguous()
                    for name, value in batch.items()
                    if isinstance(value, Tensor)
                }
                save_file(tensors, partial / f"batch-{index}.safetensors")
            write_json(partial / "batch.json", record)

    def _examples(self, batch: Batch) -> list[Origin]:
        """The origin of each example of a batch, for messages; empty if unknown."""
        return []

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        super()._save_checkpoint(model, trial)
        # Every process has then written its random state.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


class _FiniteGradients(TrainerCallback):
    """Checks gradients before the optimizer step.

    So the weights, and every checkpoint, stay finite, and the batch that is the cause is still at hand.
    """

    def __init__(self, trainer: WatchedTrainer) -> None:
        # The trainer refers to its callbacks: a strong reference back would keep it alive after training.
        self.trainer = weakref.proxy(trainer)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self.trainer.accelerator.scaler is not None:
            # fp16's scaler tries too large a factor, and skips the step that overflows.
            return
        gradients = [w.grad for w in self.trainer.model.parameters() if w.grad is not None]
        # A clipped infinity is NaN by now; the norm is finite only if every gradient is.
        norm = float(nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            # Gradients are summed over processes, so all of them stop here.
            self.trainer.stop("a gradient is not finite", together=True)


def _named(examples: Sequence[Origin]) -> str:
    if not examples:
        return ""
    languages = ", ".join(sorted({str(example["language"]) for example in examples}))
    shown = "; ".join(
        ", ".join(f"{name} {value}" for name, value in example.items()) for example in examples[:SHOWN]
    )
    more = f"; and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return f" (languages {languages}: {shown}{more})"
