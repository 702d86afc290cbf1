"""Damaged records of a run (emptied, of another type, nested deeply), substituted shards, and lists that are
too short: reported with a remedy that works, or made again; never a traceback, and never trusted.
"""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tests.conftest import half_scored

from polydistill.artefacts import check_artefact, is_current
from polydistill.config.load import parse_recipe
from polydistill.disk import SEAL, hash_file, read_json, read_record, write_json
from polydistill.errors import RunFolderError, StoreError, UserError
from polydistill.pipelines.run import run_recipe
from polydistill.reports.page import report_run
from polydistill.reports.tables import results_table
from polydistill.store.reader import Store
from polydistill.store.writer import StoreWriter
from polydistill.tools.verify import verify_run
from polydistill.training.checkpoints import fault_of, last_checkpoint, mark_complete

DEEP = "[" * 100_000 + "]" * 100_000
RECORDS = ("timing.json", "environment.json", "artefacts.json")
OTHERS = [
    "[]",
    "7",
    "null",
    '"x"',
    '{"a": {"b": []}}',
    "{",
    '{"packages": 1}',
    '{"train": "x"}',
    DEEP,
    "1" * 5000,
]


def run(values: dict, **settings) -> list[str]:
    lines: list[str] = []
    run_recipe(parse_recipe(values), show=lines.append, **settings)
    return lines


def weights(folder: Path) -> bytes:
    return (folder / "student" / "final" / "model.safetensors").read_bytes()


def test_json_of_another_type_or_deep_is_named_with_its_file(tmp_path) -> None:
    path = tmp_path / "a.json"
    for text in OTHERS:
        path.write_text(text, "utf-8")
        kind = list if text.startswith("{") else dict
        with pytest.raises(RunFolderError, match=r"a.json: is damaged"):
            read_json(path, kind)
        if not text.startswith('{"'):
            assert read_record(path) == {}
    path.write_text('{"a": ' * 200 + "1" + "}" * 200, "utf-8")
    with pytest.raises(RunFolderError, match=r"a.json: is damaged: it is nested more than"):
        read_json(path)
    path.unlink()
    with pytest.raises(RunFolderError, match="is gone"):
        read_json(path)
    write_json(path, {"a": (1, 2), 3: {10: 1, 9: 2}}, sealed=True)
    assert read_json(path, dict) == {"a": [1, 2], "3": {"10": 1, "9": 2}}


@pytest.mark.parametrize("damage", ["gone", "bits", "type", "deep", "entries"])
def test_a_log_that_is_damaged_or_gone_is_found_and_its_remedy_works(damaged, damage) -> None:
    values, folder = damaged
    log, before = folder / "student" / "log.json", weights(folder)
    if damage == "gone":
        log.unlink()
    else:
        whole = log.read_text("utf-8")
        log.write_text(
            {
                "bits": whole.replace('"step": 2', '"step": 3', 1),
                "type": "[]",
                "deep": DEEP,
                "entries": '{"log": 3}',
            }[damage],
            "utf-8",
        )
    said = []
    for look in (lambda: verify_run(folder), lambda: report_run(folder), lambda: run(values)):
        with pytest.raises(RunFolderError, match=r"student/log.json") as caught:
            look()
        said.append(str(caught.value))
    assert all(f"remove the folder {folder / 'student' / 'final'}" in message for message in said)
    shutil.rmtree(folder / "student" / "final")
    assert any("resuming at step 4" in line for line in run(values))
    assert weights(folder) == before
    assert verify_run(folder)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_type_is_named_and_a_run_makes_it_anew(damaged, name) -> None:
    values, folder = damaged
    whole = read_json(folder / name)
    wrong = [text for text in OTHERS if name != "timing.json" or text != '{"packages": 1}']
    for text in wrong:
        (folder / name).write_text(text, "utf-8")
        for look in (verify_run, report_run):
            with pytest.raises(RunFolderError, match=f"{name}|run/x: is damaged: it is gone"):
                look(folder)
    for text in wrong[-3:]:
        (folder / name).write_text(text, "utf-8")
        run(values)
        assert verify_run(folder)
        assert read_json(folder / name).keys() <= whole.keys()
    (folder / name).unlink()
    if name != "timing.json":
        with pytest.raises(RunFolderError, match=rf"{name}: is gone; rerun the command"):
            verify_run(folder)
    run(values)
    assert (folder / name).is_file()
    assert verify_run(folder)


@pytest.mark.parametrize("text", ["[]", DEEP, '{"splits": 3}', None])
def test_statistics_and_evaluations_that_are_damaged_are_named(damaged, text) -> None:
    _, folder = damaged
    for name in ("corpora/ru/statistics.json", "evaluation/mlm.json"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        if text is not None:
            (folder / name).write_text(text, "utf-8")
        with pytest.raises(RunFolderError, match=str(Path(name).parent)):
            report_run(folder)
        with pytest.raises(RunFolderError, match=str(Path(name).parent)):
            verify_run(folder)
        if name.startswith("evaluation") and text is not None:
            with pytest.raises(RunFolderError, match=r"mlm.json"):
                results_table(folder)
        (folder / name).write_bytes(kept)
    for text_of_recipe in (DEEP, "[]", "name: [x]", "{"):
        (folder / "recipe.yaml").write_text(text_of_recipe, "utf-8")
        with pytest.raises(RunFolderError, match=r"recipe.yaml"):
            verify_run(folder)
        with pytest.raises(RunFolderError, match=r"recipe.yaml"):
            report_run(folder)


def test_verify_names_what_is_gone_what_was_added_and_what_checkpoints_are(damaged) -> None:
    values, folder = damaged
    lines = verify_run(folder)
    assert any("checkpoint-4 whole, checkpoint-2 whole" in line for line in lines)
    (folder / "student" / "final" / "notes.txt").write_text("mine", "utf-8")
    assert any("not of the run: notes.txt" in line for line in verify_run(folder))
    (folder / "student" / "checkpoints" / "checkpoint-9").mkdir()
    assert any("checkpoint-9 incomplete" in line for line in verify_run(folder))
    optimizer = folder / "student" / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    kept = optimizer.read_bytes()
    optimizer.write_bytes(kept[:-1])
    with pytest.raises(RunFolderError, match=r"checkpoint-4: is damaged: its file optimizer.pt has changed"):
        verify_run(folder)
    optimizer.write_bytes(kept)
    for place in ("tokenizer", "student/final", "store/ru/ru", "corpora/ru", "evaluation"):
        stamp = (folder / place / "stamp.json").read_bytes()
        (folder / place / "stamp.json").unlink()
        with pytest.raises(RunFolderError, match=rf"{place}: is damaged: it has no stamp.json"):
            verify_run(folder)
        (folder / place / "stamp.json").write_bytes(stamp)
        (folder / place).rename(folder.parent / "away")
        with pytest.raises(RunFolderError, match=rf"{place}: is damaged: it is gone"):
            verify_run(folder)
        (folder.parent / "away").rename(folder / place)
    shutil.rmtree(folder / "tokenizer")
    run(values)
    assert verify_run(folder)


def test_a_stamp_whose_list_of_files_is_empty_or_shorter_is_not_believed(damaged) -> None:
    values, folder = damaged
    final = folder / "student" / "final"
    whole = (final / "stamp.json").read_text("utf-8")
    inputs = json.loads(whole)["inputs"]
    assert is_current(final, inputs)
    (final / "model.safetensors").write_bytes(b"other")
    emptied, shorter, listed = json.loads(whole), json.loads(whole), json.loads(whole)
    emptied["files"] = {}
    del shorter["files"]["model.safetensors"]
    listed["files"] = ["model.safetensors"]
    for stamp in (emptied, shorter, listed, {key: value for key, value in emptied.items() if key != SEAL}):
        (final / "stamp.json").write_text(json.dumps(stamp), "utf-8")
        for look in (lambda: is_current(final, inputs), lambda: check_artefact(final), lambda: run(values)):
            with pytest.raises(RunFolderError, match=r"stamp.json: is damaged"):
                look()
    # A stamp from before stamps were sealed is trusted for what it lists.
    (final / "stamp.json").write_text(
        json.dumps({key: value for key, value in json.loads(whole).items() if key != SEAL}), "utf-8"
    )
    with pytest.raises(RunFolderError, match=r"its file model.safetensors is not what was written"):
        is_current(final, inputs)
    (final / "stamp.json").write_text(
        json.dumps({"fingerprint": "x", "inputs": 1, "files": {"../../x": "y"}}), "utf-8"
    )
    with pytest.raises(RunFolderError, match=r"its file ../../x is outside of it"):
        check_artefact(final)


def test_a_checkpoint_whose_list_is_shorter_or_that_holds_more_is_passed_over(damaged) -> None:
    _, folder = damaged
    checkpoints = folder / "student" / "checkpoints"
    newest = checkpoints / "checkpoint-4"
    assert last_checkpoint(checkpoints) == newest
    whole = (newest / "complete.json").read_text("utf-8")
    (newest / "optimizer.pt").write_bytes(b"other")
    shorter = json.loads(whole)
    del shorter["optimizer.pt"]
    for record in (shorter, {key: value for key, value in shorter.items() if key != SEAL}, {}, []):
        (newest / "complete.json").write_text(json.dumps(record), "utf-8")
        assert fault_of(newest)
        assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-2"
    # A whole checkpoint with a record from before records were sealed: training resumes from it.
    mark_complete(newest)
    record = json.loads((newest / "complete.json").read_text("utf-8"))
    assert record.pop(SEAL)
    (newest / "complete.json").write_text(json.dumps(record), "utf-8")
    assert last_checkpoint(checkpoints) == newest
    (newest / "scaler.pt").write_bytes(b"more")
    assert fault_of(newest) == "its file scaler.pt was not written with it"


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt"])
def test_a_pickle_in_a_checkpoint_that_would_run_code_is_refused_with_the_folder(damaged, name) -> None:
    values, folder = damaged
    checkpoints, before = folder / "student" / "checkpoints", weights(folder)
    # Of the last checkpoint only the weights are read.
    shutil.rmtree(checkpoints / "checkpoint-4")
    checkpoint = checkpoints / "checkpoint-2"
    torch.save(Evil(), checkpoint / name)
    mark_complete(checkpoint)
    shutil.rmtree(folder / "student" / "final")
    with pytest.raises(
        RunFolderError, match=r"checkpoint-2: holds a training state that is refused"
    ) as caught:
        run(values)
    assert "remove that folder" in caught.value.remedy
    shutil.rmtree(checkpoint)
    run(values)
    assert weights(folder) == before


def store_bytes(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("shard-*"))}


def test_a_shard_that_was_copied_over_another_is_not_believed(damaged) -> None:
    values, folder = damaged
    store = folder / "store" / "ru" / "ru"
    whole = store_bytes(store)
    assert len(whole) > 2
    first, second = (store / f"shard-0000{index}.arrow" for index in range(2))
    # In a finished store, with a matching manifest.
    shutil.copy(first, second)
    manifest = json.loads((store / "manifest.json").read_text("utf-8"))
    shards = manifest["shards"]
    shards[1] = shards[0] | {"file": second.name, "number": 1}
    write_json(
        store / "manifest.json", {key: value for key, value in manifest.items() if key != SEAL}, sealed=True
    )
    with pytest.raises(StoreError, match="is another shard: its number is 0 instead of 1"):
        _ = Store(store).examples
    # In a partial store: the shard is scored again.
    second.write_bytes(whole[second.name])
    for name in ("student", "evaluation", "report"):
        shutil.rmtree(folder / name)
    partial = half_scored(store)
    shutil.copy(partial / first.name, partial / second.name)
    shutil.copy(partial / first.with_suffix(".xxh3").name, partial / second.with_suffix(".xxh3").name)
    run(values, until="score")
    assert store_bytes(store) == whole


def test_a_writer_tells_its_shards_by_their_numbers_and_their_store(damaged) -> None:
    _, folder = damaged
    store = folder / "store" / "ru" / "ru"
    writer = StoreWriter(store, read_json(store / "manifest.json")["identity"])
    data = (store / "shard-00001.arrow").read_bytes()
    assert writer.is_shard(1, data)
    assert not writer.is_shard(0, data)
    assert not writer.is_shard(1, data[:100])
    assert not StoreWriter(store, writer.identity | {"teacher": "other"}).is_shard(1, data)


def unnumbered(shard: Path) -> None:
    """A shard without its number, as earlier versions wrote it."""
    table = pa.ipc.open_stream(pa.py_buffer(shard.read_bytes())).read_all()
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"shard"}
    with pa.ipc.new_stream(str(shard), table.schema.with_metadata(metadata)) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch.replace_schema_metadata(metadata))


def test_a_store_of_an_earlier_version_is_read_and_not_scored_anew(damaged) -> None:
    values, folder = damaged
    store = folder / "store" / "ru" / "ru"
    rows = Store(store).examples.tolist()
    manifest, stamp = read_json(store / "manifest.json"), read_json(store / "stamp.json")
    for entry in manifest["shards"]:
        unnumbered(store / entry["file"])
        del entry["number"]
        entry |= {
            "checksum": hash_file(store / entry["file"]),
            "bytes": (store / entry["file"]).stat().st_size,
        }
    write_json(store / "manifest.json", manifest)
    stamp["files"] = {name: hash_file(store / name) for name in stamp["files"]}
    write_json(store / "stamp.json", stamp)
    old = store_bytes(store)
    assert Store(store).examples.tolist() == rows
    assert not any("masked positions" in line for line in run(values))
    assert store_bytes(store) == old
    # In a partial store, scoring resumes: the examples tell which shard is which.
    for name in ("student", "evaluation", "report"):
        shutil.rmtree(folder / name)
    partial = half_scored(store)
    for shard in ("shard-00001", "shard-00002"):
        (partial / f"{shard}.arrow").unlink()
    shutil.copy(partial / "shard-00000.arrow", partial / "shard-00001.arrow")
    shutil.copy(partial / "shard-00000.xxh3", partial / "shard-00001.xxh3")
    run(values, until="score")
    assert store_bytes(store)["shard-00000.arrow"] == old["shard-00000.arrow"]
    assert Store(store).examples.tolist() == rows
    # If the manifest has a number for a shard, a shard without one is another store's.
    unnumbered(store / "shard-00001.arrow")
    manifest = read_json(store / "manifest.json")
    manifest["shards"][1]["bytes"] = (store / "shard-00001.arrow").stat().st_size
    write_json(store / "manifest.json", manifest, sealed=True)
    with pytest.raises(StoreError, match="its number is none instead of 1"):
        _ = Store(store).examples


def test_a_manifest_that_lists_fewer_shards_or_others_is_refused(damaged) -> None:
    _, folder = damaged
    store = folder / "store" / "ru" / "ru"
    manifest = json.loads((store / "manifest.json").read_text("utf-8"))
    del manifest["shards"][1]
    for sealed in (True, False):
        (store / "manifest.json").write_text(
            json.dumps({key: value for key, value in manifest.items() if sealed or key != SEAL}), "utf-8"
        )
        with pytest.raises(UserError, match=r"manifest.json"):
            Store(store)


def unsealed(folder: Path) -> None:
    """Turn a run's records into an earlier version's: only a training's log had its own checksum."""
    for path in folder.rglob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        if (
            path.name not in ("log.json", "stamp.json")
            and isinstance(record, dict)
            and record.pop(SEAL, None)
        ):
            write_json(path, record)
    for path in folder.rglob("stamp.json"):
        stamp = read_json(path)
        if "files" in stamp:
            stamp["files"] = {name: hash_file(path.parent / name) for name in stamp["files"]}
        write_json(path, stamp)
    for path in folder.rglob("complete.json"):
        write_json(path, {name: hash_file(path.parent / name) for name in read_json(path)})


def test_a_run_of_an_earlier_version_goes_on_and_nothing_of_it_is_made_anew(damaged) -> None:
    values, folder = damaged
    unsealed(folder)
    assert not any(
        SEAL in path.read_text("utf-8") for path in folder.rglob("*.json") if path.name != "log.json"
    )
    before = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".arrow", ".safetensors")
    }
    assert verify_run(folder)
    assert not any("training" in line or "masked positions" in line for line in run(values))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.rmtree(folder / "student" / "final")
    assert any("resuming at step 4" in line for line in run(values))
    # Another run may reuse its student.
    other = values | {"output": str(folder.with_name("other")), "reuse": [str(folder)]}
    assert any("student: taken from" in line for line in run(other))
