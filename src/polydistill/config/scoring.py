"""Settings of scoring: which of a teacher's predictions are stored, and where they are computed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from polydistill.config.settings import Settings


def _as_place(value: str | None) -> str | None:
    """A URL or an absolute path; workers do not share a working folder."""
    if value is not None and "://" not in value and not value.startswith("/"):
        raise ValueError(
            "neither a URL nor an absolute path; use, for example, s3://bucket/scoring or /mnt/shared/scoring"
        )
    return value


def as_address(value: str | None) -> str | None:
    """`auto` or host:port, as `ray start --head` prints it."""
    if value is None or value == "auto":
        return value
    host, _, port = value.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise ValueError(
            "neither `auto` nor host:port; run this command on a machine of the cluster and use `auto`, or "
            "the address that `ray start --head` printed, such as 10.0.0.1:6379"
        )
    return value


class Ray(Settings):
    """Workers on Ray (`polydistill[ray]`), see `cluster.md`."""

    address: Annotated[str | None, AfterValidator(as_address)] = Field(
        None,
        description="A running cluster: `auto` on one of its machines, or host:port. Empty: RAY_ADDRESS if "
        "it is set; otherwise Ray starts on this machine.",
    )
    workers: int | None = Field(
        None, ge=1, description="Maximum number of workers; empty: as many as fit on the cluster."
    )
    num_cpus: int = Field(1, ge=1, description="Cores per worker, which uses as many threads.")
    num_gpus: Annotated[float, Field(ge=0, le=8, allow_inf_nan=False)] | None = Field(
        None, description="GPUs per worker; 0.5: two share one. Empty: 1 if the cluster has any, else 0."
    )
    storage: Annotated[str | None, AfterValidator(_as_place)] = Field(
        None,
        description="Where workers also put finished shards, so that a run can resume elsewhere: a URL that "
        "`fsspec` knows (`s3://`, `gs://`, `file://`), or the absolute path of a shared folder.",
    )


class Scoring(Settings):
    """How teachers' predictions are stored."""

    top_k: int = Field(8, ge=1, description="Number of the teacher's predictions stored per position.")
    sampling: Literal["top_k", "random", "hybrid"] = Field(
        "top_k",
        description="`top_k`: the most probable; `random`: k draws from the teacher's distribution, an "
        "unbiased estimate of it (Sparse Logit Sampling, ACL 2025); `hybrid`: half of each, the draws from "
        "what the most probable leave, unbiased too.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto`: bfloat16 where the hardware supports it."
    )
    batch_tokens: int = Field(8192, ge=64, description="Maximum tokens in a batch, padding included.")
    shard_examples: int = Field(4096, ge=1, description="Examples per shard; scoring resumes shard by shard.")
    engine: Literal["local", "ray"] = Field(
        "local",
        description="`local`: this process; `ray`: workers on this machine or a cluster. The stores are "
        "identical, and each engine can resume what the other began.",
    )
    ray: Ray = Field(default_factory=Ray)

    @property
    def labels(self) -> dict[str, object]:
        """The settings that predictions depend on, without those of where they are computed."""
        return self.model_dump(mode="json", exclude={"engine", "ray"})


class TextScoring(Scoring):
    """How the predictions of a teacher of the whole text are stored."""

    examples: Literal["needed", "all"] = Field(
        "needed",
        description="Training examples to score. `needed`: as many as training draws while teachers' labels "
        "have weight (see `distillation.annealing_share`), in whole sixteenths of the text, or a store that "
        "holds them; `all`: the whole text, for longer trainings to come.",
    )


class MergeScoring(TextScoring):
    """How the predictions of a merge's teachers are stored."""

    draws: int = Field(
        1,
        ge=1,
        le=1000,
        description="Draws of masks for each example, each scored. With one, a training that passes over its "
        "text again meets the masks that it knows.",
    )
