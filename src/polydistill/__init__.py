"""polydistill: merge, extract and balance multilingual masked language models by distillation."""

__version__ = "0.1.0"
