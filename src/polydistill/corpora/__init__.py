"""Text per language: read, cleaned, split, packed into examples."""
