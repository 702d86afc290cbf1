"""Hugging Face models: load teachers safely, build students, read features at masked positions."""

from polydistill.models.extract import extract_student
from polydistill.models.features import masked_features, output_layer
from polydistill.models.load import load_masked_lm, model_config
from polydistill.models.onnx_export import export_onnx
from polydistill.models.onnx_int8 import quantise_onnx
from polydistill.models.student import build_student, start_from_teachers, student_config
from polydistill.models.trim import trim_model

__all__ = [
    "build_student",
    "export_onnx",
    "extract_student",
    "load_masked_lm",
    "masked_features",
    "model_config",
    "output_layer",
    "quantise_onnx",
    "start_from_teachers",
    "student_config",
    "trim_model",
]
