"""One contestant of the training benchmark, in a process of its own.

python -m benchmarks.contestants SHAPE NAME DTYPE STEPS prints one line of JSON: the seconds of each step
after the first, peak memory, and what the contestant reports. Every contestant trains the same student on the
same number of random tokens, with its own loop and data loader; a step ends when its optimizer has stepped.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from polydistill.training.objectives import StoredLabels


@dataclass(frozen=True)
class Shape:
    """Sizes of a training step. `embedding` is the embeddings' width: electra if not `width`."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    embedding: int
    sequences: int
    length: int
    teacher_layers: int = 12
    teacher_width: int = 768

    def describe(self) -> str:
        """The shape in words."""
        return (
            f"student {self.layers} layers × {self.width}, vocabulary {self.vocabulary:,} × "
            f"{self.embedding}, {self.sequences} × {self.length} tokens a step, teacher "
            f"{self.teacher_layers} layers × {self.teacher_width} with the same vocabulary"
        )

    def student(self) -> Any:
        """The student, with random weights and no dropout."""
        torch.manual_seed(0)
        kind = "bert" if self.embedding == self.width else "electra"
        fields = {} if kind == "bert" else {"embedding_size": self.embedding}
        return _model(kind, self.vocabulary, self.layers, self.width, self.heads, **fields)

    def teacher(self) -> Any:
        """The teacher, with the student's vocabulary: dense distillation needs the same one."""
        torch.manual_seed(1)
        return _model("bert", self.vocabulary, self.teacher_layers, self.teacher_width, 12).eval()

    def flops(self) -> float:
        """Floating-point operations of our step, forward and backward.

        Matrix products of the encoder at all tokens, and of the output layer at masked ones.
        """
        tokens = self.sequences * self.length
        layer = 2 * (4 * self.width**2 + 2 * self.width * 4 * self.width) + 4 * self.length * self.width
        head = 2 * (self.width * self.embedding + self.embedding * self.vocabulary)
        return 3.0 * tokens * (self.layers * layer + MASKED * head)


MASKED = 0.15
SHAPES = {
    # A student of 6 layers with the union of a few vocabularies; a step that runs in seconds; the paper's
    # largest vocabulary.
    "middle": Shape(120_000, 6, 512, 8, 512, 16, 128),
    "small": Shape(8_000, 2, 128, 2, 128, 8, 64, teacher_layers=2, teacher_width=192),
    "paper": Shape(288_973, 4, 256, 4, 256, 32, 128),
    # A base-size student for a GPU, and sizes that only try the code.
    "gpu": Shape(120_000, 12, 768, 12, 768, 128, 128),
    "tiny": Shape(2_000, 2, 64, 2, 64, 8, 32, teacher_layers=2, teacher_width=96),
}


def _model(kind: str, vocabulary: int, layers: int, width: int, heads: int, **fields: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **fields,
    )
    return AutoModelForMaskedLM.from_config(config)


class Texts(Dataset[dict[str, list[int]]]):
    """Full sequences of random tokens."""

    def __init__(self, shape: Shape, rows: int) -> None:
        self.ids = np.random.default_rng(0).integers(5, shape.vocabulary, (rows, shape.length))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return {"input_ids": self.ids[row].tolist()}


class Clock(TrainerCallback):
    """The time of every optimizer step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        # A GPU's work is only queued when a step returns.
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def _tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(shape.vocabulary - 5))]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({p: i for i, p in enumerate(pieces)}, "[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


class OnlineTeacher(Trainer):
    """DistilBERT's recipe: the teacher's logits at every step, KL and MLM at masked tokens, T = 2, 5 : 2."""

    teacher: Any

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """5 * T² * KL(teacher ‖ student) + 2 * MLM."""
        labels = inputs.pop("labels")
        student = model(**inputs).logits
        with torch.no_grad():
            teacher = self.teacher(**inputs).logits
        masked = labels != -100
        chosen, wanted = student[masked], teacher[masked]
        kd = F.kl_div(F.log_softmax(chosen / 2, dim=-1), F.softmax(wanted / 2, dim=-1), reduction="batchmean")
        mlm = F.cross_entropy(student.view(-1, student.shape[-1]), labels.view(-1), ignore_index=-100)
        return 5.0 * 4.0 * kd + 2.0 * mlm


def _arguments(shape: Shape, dtype: str, steps: int, folder: str) -> TrainingArguments:
    return TrainingArguments(
        folder,
        per_device_train_batch_size=shape.sequences,
        max_steps=steps,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        bf16=dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=steps,
    )


def trainer(shape: Shape, dtype: str, steps: int, folder: str, *, online_teacher: bool) -> dict[str, Any]:
    """P1 with a teacher in the loop, P3 without."""
    clock = Clock()
    make = OnlineTeacher if online_teacher else Trainer
    loop = make(
        model=shape.student(),
        args=_arguments(shape, dtype, steps, folder),
        train_dataset=Texts(shape, 512),
        data_collator=DataCollatorForLanguageModeling(_tokenizer(shape), mlm_probability=MASKED),
        callbacks=[clock],
    )
    if isinstance(loop, OnlineTeacher):
        loop.teacher = shape.teacher()
    loop.train()
    return {"times": clock.times}


def textbrewer(shape: Shape, dtype: str, steps: int, folder: str) -> dict[str, Any]:
    """P2: GeneralDistiller on the logits of masked positions, and the student's own MLM loss."""
    import textbrewer as tb

    if dtype != "float32":
        raise SystemExit("TextBrewer has no bfloat16")
    collator = DataCollatorForLanguageModeling(_tokenizer(shape), mlm_probability=MASKED)
    loader = torch.utils.data.DataLoader(
        Texts(shape, 512), batch_size=shape.sequences, collate_fn=collator, shuffle=True
    )
    times: list[float] = []
    student = shape.student()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    optimizer.register_step_post_hook(lambda *_: times.append(time.perf_counter()))

    def adaptor(batch: dict[str, Tensor], outputs: Any) -> dict[str, Any]:
        # TextBrewer gathers by a mask with a number for each token.
        mask = (batch["labels"] != -100).long()
        return {"logits": outputs.logits, "logits_mask": mask, "losses": outputs.loss}

    distiller = tb.GeneralDistiller(
        tb.TrainingConfig(output_dir=folder, log_dir=folder, device="cpu", ckpt_steps=10**9),
        tb.DistillationConfig(temperature=2, kd_loss_weight=5, hard_label_weight=2),
        shape.teacher(),
        student,
        adaptor,
        adaptor,
    )
    with distiller:
        # TextBrewer passes a batch by name only if it is a plain dictionary.
        distiller.train(optimizer, loader, num_steps=steps, batch_postprocessor=dict)
    return {"times": times}


class GoldOnly:
    """The same examples without a teacher's predictions, as in `pretrain`."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.lengths = data.lengths

    def __len__(self) -> int:
        return len(self.data)

    def example(self, row: int, epoch: int, language: int) -> Any:
        """The example at a row."""
        example = self.data.example(row, epoch, language)
        return replace(example, top_ids=example.top_ids[:, :0], top_logprobs=example.top_logprobs[:, :0])


def ours(shape: Shape, dtype: str, steps: int, folder: str, *, labels: str) -> dict[str, Any]:
    """polydistill's loop, on a store of random predictions on disk, as scoring writes it."""
    from polydistill.config.shared import Distillation
    from polydistill.store.reader import Store
    from polydistill.training.arguments import check_arguments
    from polydistill.training.data import StoredExamples
    from polydistill.training.run import train

    _write_store(shape, Path(folder) / "store", rows=512, top_k=8)
    store = Store(Path(folder) / "store")
    choice = np.stack([np.zeros(len(store), dtype=np.int64), np.arange(len(store))], axis=1)
    data: Any = StoredExamples([store], [np.arange(shape.vocabulary)], choice)
    if labels == "gold":
        data = GoldOnly(data)
    values = check_arguments(
        {
            "max_steps": steps,
            "per_device_train_batch_size": shape.sequences,
            "report_to": [],
            "save_strategy": "no",
            "bf16": dtype == "bfloat16",
            "logging_steps": steps,
        }
    )
    clock = Clock()
    log = train(
        shape.student(),
        {"xx": data},
        [1.0],
        folder=Path(folder) / "checkpoints",
        arguments=values,
        objective=StoredLabels(Distillation(labels=labels), ["xx"]),
        pad_id=0,
        max_length=shape.length,
        seed=0,
        say=lambda line: None,
        callbacks=[clock],
    )
    waited = [entry["waiting_share"] for entry in log if "waiting_share" in entry]
    return {"times": clock.times, "waiting_share": waited[-1] if waited else None, "flops": shape.flops()}


def _write_store(shape: Shape, folder: Path, *, rows: int, top_k: int) -> None:
    from polydistill.store.writer import ScoredExample, StoreWriter

    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    writer = StoreWriter(
        folder,
        {
            "vocabulary_size": shape.vocabulary,
            "max_length": shape.length,
            "top_k": top_k,
            "language": "xx",
            "teacher": "t",
        },
    )
    examples = []
    for row in range(rows):
        ids = draw.integers(5, shape.vocabulary, shape.length)
        positions = np.sort(draw.choice(shape.length, round(MASKED * shape.length), replace=False))
        top = np.stack([draw.choice(shape.vocabulary, top_k, replace=False) for _ in positions])
        logprobs = np.sort(np.log(draw.dirichlet(np.ones(top_k + 1), len(positions))[:, :top_k]), axis=1)[
            :, ::-1
        ]
        examples.append(
            ScoredExample(
                row,
                ids,
                positions,
                ids[positions],
                logprobs[:, 0].astype(np.float32),
                top,
                logprobs.astype(np.float32),
            )
        )
    writer.write(0, examples)
    writer.finish({})


CONTESTANTS: dict[str, Callable[[Shape, str, int, str], dict[str, Any]]] = {
    "ours": lambda *a: ours(*a, labels="both"),
    "ours-gold": lambda *a: ours(*a, labels="gold"),
    "trainer-teacher": lambda *a: trainer(*a, online_teacher=True),
    "trainer-plain": lambda *a: trainer(*a, online_teacher=False),
    "textbrewer": textbrewer,
}


def main(shape: str, name: str, dtype: str, steps: str) -> None:
    """Run one contestant and print its measurements."""
    with tempfile.TemporaryDirectory() as folder:
        measured = CONTESTANTS[name](SHAPES[shape], dtype, int(steps), folder)
    times = measured.pop("times")
    peak = (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    measured |= {"seconds": np.diff(times).tolist(), "peak_bytes": peak, "shape": asdict(SHAPES[shape])}
    print(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
