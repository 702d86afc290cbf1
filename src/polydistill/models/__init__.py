"""The Hugging Face boundary: teachers loaded safely, students built, features at masked positions."""

from polydistill.masking import mask_texts, masks_identity
from polydistill.models.attention import attention_for
from polydistill.models.extract import (
    check_extractable,
    check_extraction,
    choose_layers,
    extract_student,
    extracted_config,
    layer_list,
)
from polydistill.models.features import (
    features_and_states,
    masked_features,
    output_layer,
    queries_keys_values,
)
from polydistill.models.inputs import length_batches, length_parts, pad_batch
from polydistill.models.load import load_masked_lm, model_config, weights_fingerprint, weights_size
from polydistill.models.memory import keep_freed_memory, return_freed_memory
from polydistill.models.onnx_export import Inputs, compare_onnx, export_onnx, takes_token_types
from polydistill.models.onnx_int8 import quantise_onnx
from polydistill.models.onnx_runtime import OnnxModel, require_onnx
from polydistill.models.precision import device, resolve_dtype
from polydistill.models.student import (
    TeacherRows,
    build_student,
    check_encoder,
    start_from_teachers,
    student_config,
)
from polydistill.models.trim import logits_difference, trim_model
from polydistill.tasks.heads import NO_LABEL, collate, load_with_head, predict, takes_segments

__all__ = [
    "NO_LABEL",
    "Inputs",
    "OnnxModel",
    "TeacherRows",
    "attention_for",
    "build_student",
    "check_encoder",
    "check_extractable",
    "check_extraction",
    "choose_layers",
    "collate",
    "compare_onnx",
    "device",
    "export_onnx",
    "extract_student",
    "extracted_config",
    "features_and_states",
    "keep_freed_memory",
    "layer_list",
    "length_batches",
    "length_parts",
    "load_masked_lm",
    "load_with_head",
    "logits_difference",
    "mask_texts",
    "masked_features",
    "masks_identity",
    "model_config",
    "output_layer",
    "pad_batch",
    "predict",
    "quantise_onnx",
    "queries_keys_values",
    "require_onnx",
    "resolve_dtype",
    "return_freed_memory",
    "start_from_teachers",
    "student_config",
    "takes_segments",
    "takes_token_types",
    "trim_model",
    "weights_fingerprint",
    "weights_size",
]  # fmt: skip
