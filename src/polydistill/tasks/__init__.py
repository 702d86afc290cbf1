"""Tasks with labels: their data, heads, fine-tuning, probes and scores."""
