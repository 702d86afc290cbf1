"""Stages that several pipelines share."""
