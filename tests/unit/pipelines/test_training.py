"""The training stage."""

from __future__ import annotations


def test_languages_in_another_order_are_another_model(tmp_path) -> None:
    """A fingerprint sorts keys, but the language that an example is drawn from depends on their order."""
    from polydistill.artefacts import artefact
    from polydistill.disk import write_json
    from polydistill.pipelines.run_folder import Run
    from polydistill.pipelines.stages.training import equal_model

    inputs = {"texts": {"de": 1, "en": 2}, "seed": 0}
    made = tmp_path / "made" / "student" / "final"
    with artefact(made, inputs) as folder:
        (folder / "weights").write_text("w")
    write_json(made.parent / "log.json", {"log": []}, sealed=True)
    own = Run(tmp_path / "own", [tmp_path / "made"], print, {}, False)
    assert equal_model(own, own.path / "student" / "final", inputs) == made
    turned = {"texts": {"en": 2, "de": 1}, "seed": 0}
    assert equal_model(own, own.path / "student" / "final", turned) is None
