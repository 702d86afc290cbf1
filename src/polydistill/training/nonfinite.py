"""Trainer that stops where its numbers are no longer finite, with what is needed to see why."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback

from polydistill.artefacts import artefact
from polydistill.disk import write_json
from polydistill.errors import DiskError, NumericsError
from polydistill.processes import process_index
from polydistill.training.checkpoints import mark_complete

FOLDER = "nonfinite-step-{step}"
# Examples that the message names; batch.json has all.
SHOWN = 3


class WatchedTrainer(Trainer):
    """Trainer whose checkpoints are marked when whole, and that stops at a loss or gradient that is NaN or infinite.

    evidence  where it leaves what made it stop; by default beside the folder of checkpoints, which other settings empty
    """

    def __init__(self, *, evidence: Path | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.evidence = evidence or Path(str(self.args.output_dir)).parent
        self.add_callback(_FiniteGradients(self))
        # The micro-batches of the step that is being computed, or their parts.
        self._batches: Sequence[dict[str, Any]] = ()

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        """The micro-batches of a step."""
        samples = super().get_batch_samples(*arguments, **keywords)
        self._batches = [part for batch in samples[0] for part in batch.get("parts", [batch])]
        return samples

    def check(self, loss: Tensor) -> None:
        """Raise NumericsError, as `stop` does, for a micro-batch's loss that is not finite."""
        value = float(loss.detach())
        if not math.isfinite(value):
            self.stop(f"the loss is {value}")

    def stop(self, what: str, *, together: bool = False) -> NoReturn:
        """Save the weights and this process's batches of the step; raises NumericsError, which says where.

        together  whether every process is here, and waits until all have written
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
            # What was found must not be hidden by that.
            saved = f"the batch could not be saved ({error.reason})"
        if together:
            self.accelerator.wait_for_everyone()
        raise NumericsError(
            "training",
            None,
            f"{what} at step {step}{_named(examples)}; {saved}",
            "lower training.learning_rate, lengthen warm-up, or set training.bf16: false; the last checkpoint stays",
        )

    def _leave(self, folder: Path, record: dict[str, Any]) -> None:
        with artefact(folder, {"step": record["step"], "what": record["what"]}) as partial:
            model: Any = self.accelerator.unwrap_model(self.model)
            model.save_pretrained(partial)
            for index, batch in enumerate(self._batches):
                tensors = {
                    name: value.detach().cpu().contiguous()
                    for name, value in batch.items()
                    if isinstance(value, Tensor)
                }
                save_file(tensors, partial / f"batch-{index}.safetensors")
            write_json(partial / "batch.json", record)

    def _examples(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Where each example of a batch comes from, for people; nothing where it is not known."""
        return []

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        # Every process has written its own random state by then.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")


class _FiniteGradients(TrainerCallback):
    """Looks at the gradients before the optimizer takes them: the weights, and so every checkpoint, stay finite, and
    the batch that is to blame is still at hand.
    """

    def __init__(self, trainer: WatchedTrainer) -> None:
        # The trainer knows its callbacks: by a reference of this one's it would outlive its training.
        self.trainer: Any = weakref.proxy(trainer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.accelerator.scaler is not None:
            # Of fp16: it tries too large a factor, and leaves out the step that overflows.
            return
        model: Any = self.trainer.model
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        # An infinity that was clipped is NaN by now; the norm of all of them is finite only if each of them is.
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            # Summed over processes: all of them are here.
            self.trainer.stop("a gradient is not finite", together=True)


def _named(examples: Sequence[dict[str, Any]]) -> str:
    if not examples:
        return ""
    languages = ", ".join(sorted({str(example["language"]) for example in examples}))
    shown = "; ".join(
        ", ".join(f"{name} {value}" for name, value in example.items()) for example in examples[:SHOWN]
    )
    more = f"; and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return f" (languages {languages}: {shown}{more})"
