"""Number types for computing and measuring: never one that the processor must emulate."""

import os
import subprocess
import sys

import pytest
import torch

benchmarks = pytest.importorskip("benchmarks.step", reason="benchmarks are in the repository alone")


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_a_processor_without_bfloat16_computes_in_float32(capability) -> None:
    """As PyTorch is told to compute, whatever this machine's processor can do."""
    code = "from polydistill.models.precision import resolve_dtype; print(resolve_dtype('auto'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.strip() == "torch.float32"


@pytest.mark.parametrize(
    ("auto", "measured"), [(torch.float32, ["float32"]), (torch.bfloat16, ["float32", "bfloat16"])]
)
def test_benches_measure_float32_and_what_a_run_takes(monkeypatch, auto, measured) -> None:
    monkeypatch.setattr(benchmarks, "resolve_dtype", lambda precision: auto)
    assert benchmarks.number_types() == measured


def test_a_page_keeps_what_is_not_measured_anew(tmp_path, monkeypatch) -> None:
    """A machine that has run one benchmark keeps the others' figures."""
    from benchmarks import page

    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "performance.md").write_text(
        f"{page.HEAD}\n## Vocabulary algebra\n\nold vocab\n\n## Scoring on Ray\n\nold ray\n", "utf-8"
    )
    where = '{"cores": 2, "processor": "p", "gpu": null, "torch": "t"}'
    record = f'{{"command": "ray", "date": "today", "where": {where}, "measured": {{"new": 1}}}}'
    (tmp_path / "ray.json").write_text(record, "utf-8")
    page.write_page()
    text = (tmp_path / "performance.md").read_text("utf-8")
    assert text.startswith(page.HEAD)
    assert "old vocab" in text
    assert "old ray" not in text
    assert "- new: 1" in text
    assert text.index("## Scoring on Ray") < text.index("## Vocabulary algebra")
