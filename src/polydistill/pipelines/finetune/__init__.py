"""The pipeline of a finetune recipe."""
