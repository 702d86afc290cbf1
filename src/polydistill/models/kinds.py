"""Kinds of encoders: masked language models, encoders without a head, classifiers, readers of questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from polydistill.errors import ModelError
from polydistill.models.load import (
    check_finite,
    check_weights,
    is_decoder,
    load_masked_lm,
    missing_weights,
    model_config,
    read_weights,
    refuse_pickle,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Kind:
    """What a model computes from tokens.

    name     of the kind, in messages
    classes  how the names of its classes end in transformers
    auto     the class that loads it
    outputs  the fields of its output that depend on the text; each is [B, L, ...], or [B, ...] if `pooled`
    pooled   whether an output is one vector a text
    task     the hub's name of its task
    """

    name: str
    classes: str
    auto: Any
    outputs: tuple[str, ...]
    task: str
    pooled: bool = False

    @property
    def exported(self) -> tuple[str, ...]:
        """The outputs of an exported graph: a pooler is the head of a task that the encoder no longer has."""
        return tuple(name for name in self.outputs if name != "pooler_output")


MASKED_LM = Kind("masked language model", "ForMaskedLM", AutoModelForMaskedLM, ("logits",), "fill-mask")
ENCODER = Kind(
    "encoder without a head", "Model", AutoModel, ("last_hidden_state", "pooler_output"), "feature-extraction"
)
TOKENS = Kind(
    "token classifier",
    "ForTokenClassification",
    AutoModelForTokenClassification,
    ("logits",),
    "token-classification",
)
SEQUENCES = Kind(
    "sequence classifier",
    "ForSequenceClassification",
    AutoModelForSequenceClassification,
    ("logits",),
    "text-classification",
    pooled=True,
)
QUESTIONS = Kind(
    "question answerer",
    "ForQuestionAnswering",
    AutoModelForQuestionAnswering,
    ("start_logits", "end_logits"),
    "question-answering",
)
HEADS = (MASKED_LM, TOKENS, SEQUENCES, QUESTIONS)


def kind_of_model(config: PreTrainedConfig, model: str, field: str = "model") -> Kind:
    """The kind that a configuration's `architectures` names; without it, a masked language model.

    Raises ModelError for a decoder and for a class of another kind.
    """
    names = list(getattr(config, "architectures", None) or [])
    if is_decoder(config):
        raise ModelError(
            field,
            model,
            f"is a decoder, which predicts the next token (model type {config.model_type})",
            "give an encoder, such as BERT, RoBERTa, XLM-R or ModernBERT",
        )
    # BertForPreTraining's MLM head is that of BertForMaskedLM.
    if not names or (
        names[0].endswith("ForPreTraining") and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    ):
        return MASKED_LM
    plain = MODEL_MAPPING_NAMES.get(config.model_type, ())
    if names[0] in ((plain,) if isinstance(plain, str) else plain):
        return ENCODER
    for kind in HEADS:
        if names[0].endswith(kind.classes):
            return kind
    raise ModelError(
        f"{field}.config.architectures",
        names[0],
        f"is none of the kinds that can be taken: encoders without a head (such as BertModel) and classes in "
        f"{', '.join(kind.classes for kind in HEADS)}",
        "if only its encoder is wanted, write that alone: "
        "`AutoModel.from_pretrained(OLD).save_pretrained(NEW)`, with the tokenizer beside it",
    )


def load_kind(
    model: str,
    kind: Kind | None = None,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    field: str = "model",
) -> tuple[PreTrainedModel, Kind, list[str]]:
    """(a model in evaluation mode, its kind, names of weights in its files that the kind does not use).

    kind   as it is to be loaded; None: as `architectures` says
    dtype  as for `load_masked_lm`
    Raises ModelError as `kind_of_model` does, and if weights of the head or of the encoder are missing;
    NumericsError if a weight is not finite.
    """
    refuse_pickle(model, field, revision, allow_pickle)
    config = model_config(model, revision=revision, field=field)
    kind = kind or kind_of_model(config, model, field)
    if kind == MASKED_LM:
        unused: list[str] = []
        loaded = load_masked_lm(
            model,
            revision=revision,
            allow_pickle=allow_pickle,
            dtype=dtype,
            field=None if field == "model" else field,
            unused=unused,
        )
        return loaded, kind, unused
    loaded, info = read_weights(
        kind.auto,
        model,
        field=field,
        problem=f"cannot be loaded as {_a(kind.name)}",
        remedy="check that config.json's `architectures` names the class that the weights are of",
        revision=revision,
        allow_pickle=allow_pickle,
        dtype=dtype,
    )
    missing = missing_weights(info)
    if kind == ENCODER and missing and all(key.startswith("pooler.") for key in missing):
        # Weights that were saved without a pooler; a random one must not be written.
        loaded.pooler = None
        missing = []
    if missing:
        raise ModelError(
            field,
            model,
            f"its file lacks weights that {_a(kind.name)} needs ({', '.join(missing[:3])})",
            "use a complete checkpoint, or correct `architectures` in config.json",
        )
    check_weights(loaded, info, model, field, revision)
    check_finite(loaded, model, field)
    return loaded.eval(), kind, sorted(info["unexpected_keys"])


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
