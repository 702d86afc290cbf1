"""Scoring on Ray: the bytes of the local engine, whatever is killed on the way; and users' mistakes."""

import io
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests.conftest import half_scored

from polydistill import ray_session
from polydistill.config.load import parse_recipe
from polydistill.errors import ClusterError, NumericsError, RecipeError, UserError
from polydistill.pipelines.plan import plan_recipe
from polydistill.pipelines.run import run_recipe
from polydistill.scoring import ray_engine, ray_worker
from polydistill.store.writer import StoreWriter

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'polydistill[ray]'")


@pytest.fixture(scope="module")
def address():
    """A cluster on this machine with room for two drivers' workers; runs must not stop it."""
    os.environ.update(ray_session._ENVIRONMENT)
    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    assert ray.is_initialized()
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(address):
    """Two workers: starting them takes longer than their work here."""
    workers = ray_engine.Workers(ray_engine.Ray(workers=2))
    yield workers
    workers.close()


@pytest.fixture
def shared(pool, monkeypatch):
    """Runs of a test use the module's workers."""

    def take(settings, say):
        pool.settings, pool.say = settings, say
        return pool

    monkeypatch.setattr(ray_engine, "Workers", take)
    monkeypatch.setattr(pool, "close", lambda: None)
    return pool


@pytest.fixture
def values(recipe_values) -> dict:
    """One teacher, with enough shards that something can happen between two of them."""
    return recipe_values | {
        "teachers": {"ru": recipe_values["teachers"]["ru"]},
        "languages": {"ru": shorter(recipe_values["languages"]["ru"])},
        "scoring": {"shard_examples": 32, "precision": "float32"},
    }


def shorter(language: dict) -> dict:
    """A language with less text."""
    return language | {"text": {"path": language["text"], "num_lines": 600}}


def scored(values: dict, output: Path, *, lines: list[str] | None = None, **scoring) -> Path:
    """The run's folder, with stores."""
    changed = values | {"output": str(output), "scoring": values["scoring"] | scoring}
    show = (lambda line: None) if lines is None else lines.append
    return run_recipe(parse_recipe(changed), until="score", show=show)


def content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob("store/*/*/*")}


def own_workers() -> list[int]:
    """Process ids of this process' workers."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return [process.pid for process in children if "ShardWorker" in " ".join(process.cmdline())]


def test_a_killed_workers_shards_are_scored_by_another(recipe_values, tmp_path, shared, monkeypatch) -> None:
    """Three teachers of two languages, one of two workers killed midway: the bytes of the local engine."""
    values = recipe_values | {
        "languages": {name: shorter(language) for name, language in recipe_values["languages"].items()},
        "scoring": {"shard_examples": 32, "precision": "float32"},
    }
    expected = content(scored(values, tmp_path / "local"))
    put, killed, lines = StoreWriter.put, [], []

    def put_and_kill(self, index, data):
        put(self, index, data)
        # Both are busy: the first has finished some shards, the second has been given some.
        if not killed and len(list(self.folder.glob("shard-*.arrow"))) == 6:
            killed.extend(own_workers()[:1])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(StoreWriter, "put", put_and_kill)
    run = scored(values, tmp_path / "ray", lines=lines, engine="ray", ray={"workers": 2})
    assert killed
    # With shards in hand, which are scored again; or, on a busy machine, before it had any.
    assert [line for line in lines if "a worker was lost" in line]
    assert len(expected) > 40
    assert content(run) == expected


def test_begun_locally_and_finished_on_ray(values, tmp_path, shared) -> None:
    run = scored(values, tmp_path / "run")
    before = content(run)
    folder = run / "store" / "ru" / "ru"
    partial = half_scored(folder)
    for path in sorted(partial.glob("shard-*.arrow"))[::2]:
        path.unlink()
    (partial / "shard-00000.arrow.tmp").write_bytes(b"half of it")
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("shard-*.arrow")}
    scored(values, tmp_path / "run", engine="ray", ray={"workers": 2})
    assert content(run) == before
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.slow
@pytest.mark.parametrize("joins", [True, False])
def test_a_killed_driver(values, tmp_path, address, shared, monkeypatch, joins) -> None:
    """The local engine finishes its rest. Elsewhere scoring resumes from its workers' storage, without
    damaged files.
    """
    storage = tmp_path / "storage"
    where = {"address": address if joins else None, "workers": 2, "storage": storage.as_uri()}
    run = tmp_path / "killed"
    settings = values["scoring"] | {"engine": "ray", "ray": where, "batch_tokens": 128}
    small = values | {"scoring": values["scoring"] | {"batch_tokens": 128}}
    expected = content(scored(small, tmp_path / "calm"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values | {"output": str(run), "scoring": settings}), "utf-8")
    command = [sys.executable, "-m", "polydistill", "score", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while (
            not list(run.glob("store/**/shard-*.arrow"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        process.kill()
        said = process.stderr.read().decode()
    assert process.returncode == -signal.SIGKILL, f"the run was over before it was killed: {said}"
    assert not list(run.glob("store/ru/ru"))
    scored(small, run)
    assert content(run) == expected

    there = sorted(storage.rglob("shard-*.arrow"))
    assert 0 < len(there) < len(expected) - 2
    there[0].write_bytes(there[0].read_bytes()[:-1])
    todo = []
    score = shared.score

    def watched(job, model, examples, indices):
        todo.extend(indices)
        return score(job, model, examples, indices)

    monkeypatch.setattr(shared, "score", watched)
    elsewhere = scored(
        small, tmp_path / "elsewhere", engine="ray", ray={"workers": 2, "storage": storage.as_uri()}
    )
    assert content(elsewhere) == expected
    shards = len(expected) - 2
    assert len(todo) == shards - len(there) + 1
    assert 0 in todo or there[0].name.split(".")[0] != "shard-00000"


def test_a_trimmed_teacher(extract_values, tmp_path, shared) -> None:
    """An extraction scores with a teacher that is on no disk."""
    values = extract_values | {
        "losses": {"predictions": "stored"},
        "trim": {"when": "before"},
        "scoring": {"precision": "float32", "shard_examples": 256},
    }
    expected = content(scored(values, tmp_path / "local"))
    assert expected
    assert content(scored(values, tmp_path / "ray", engine="ray", ray={"workers": 2})) == expected


def test_what_is_wrong_in_a_worker_is_said_as_without_ray(values, teachers, tmp_path, shared) -> None:
    import shutil

    folder = Path(shutil.copytree(teachers["ru"], tmp_path / "loud"))
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.transform.LayerNorm.weight"].fill_(3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = values | {"teachers": {"ru": str(folder)}}
    messages = []
    for engine in ("local", "ray"):
        with pytest.raises(UserError) as caught:
            scored(values, tmp_path / engine, engine=engine, ray={"workers": 1})
        messages.append((type(caught.value), caught.value.field, caught.value.remedy))
    assert messages[0] == messages[1]
    assert messages[0][:2] == (NumericsError, "teacher")
    assert (tmp_path / "ray" / "store" / "ru").is_dir()


@pytest.mark.parametrize(
    "kind",
    ["dies", pytest.param("damages", marks=pytest.mark.slow), pytest.param("older", marks=pytest.mark.slow)],
)
def test_tries_are_bounded(values, tmp_path, address, monkeypatch, kind) -> None:
    """A shard that kills its worker, bytes damaged in transit, a worker with other versions: an end with a
    reason.
    """
    monkeypatch.setattr(ray_engine, "MAX_TRIES", 1)

    class Bad(ray_worker.ShardWorker):
        def begin(self, expected, *given):
            if kind == "older":
                expected = expected | {"torch": "1.0"}
            return super().begin(expected, *given)

        def score(self, index, ids, texts):
            if kind == "dies" and index == 2:
                os._exit(9)
            shard = super().score(index, ids, texts)
            data = shard.data[:-1] if kind == "damages" and index == 2 else shard.data
            return ray_worker.ScoredShard(data, shard.digest, shard.tokens)

    monkeypatch.setattr(ray_engine, "ShardWorker", Bad)
    with pytest.raises(ClusterError) as caught:
        scored(values, tmp_path / "run", engine="ray", ray={"workers": 1})
    wanted = {
        "dies": r"shard [012] lost its worker 1 times",
        "damages": "damaged in transfer",
        "older": "has torch",
    }
    caught.match(wanted[kind])
    assert "shard-00002" not in " ".join(path.name for path in tmp_path.rglob("*.arrow"))


def refused(values: dict, tmp_path: Path, *wanted: str, **scoring) -> UserError:
    """A run is refused before it has a folder, and the plan gives the reason."""
    from rich.console import Console

    changed = values | {"output": str(tmp_path / "no"), "scoring": values["scoring"] | scoring}
    with pytest.raises(UserError) as caught:
        run_recipe(parse_recipe(changed), until="score", show=lambda line: None)
    assert not (tmp_path / "no").exists()
    said = io.StringIO()
    plan_recipe(parse_recipe(changed), (), Console(file=said, width=1000))
    for part in wanted:
        assert part in str(caught.value)
        assert part in said.getvalue()
    return caught.value


def test_ray_is_not_installed(values, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None)
    error = refused(values, tmp_path, "is not installed", engine="ray")
    assert "pip install 'polydistill[ray]'" in error.remedy


def test_settings_of_no_use(values, tmp_path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(values, tmp_path, closed, "cannot be reached", engine="ray", ray={"address": closed})
    refused(values, tmp_path, "nosuch://x", "cannot be used", engine="ray", ray={"storage": "nosuch://x"})
    for settings, wanted in (
        (
            {"address": "ray://head:10001"},
            "scoring.ray.address 'ray://head:10001': neither `auto` nor host:port",
        ),
        ({"storage": "shards"}, "scoring.ray.storage 'shards': neither a URL nor an absolute path"),
        ({"workers": 0}, "scoring.ray.workers 0"),
        ({"worker": 2}, "did you mean 'workers'"),
    ):
        with pytest.raises(RecipeError, match=r"scoring\.ray") as caught:
            parse_recipe(values | {"scoring": {"engine": "ray", "ray": settings}})
        assert wanted in str(caught.value)


def test_an_address_of_the_environment_is_looked_at_as_the_recipe_s(values, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    error = refused(values, tmp_path, "RAY_ADDRESS", "Ray's client", engine="ray")
    assert (error.field, error.value) == ("RAY_ADDRESS", "ray://head:10001")
    assert "host:port or `auto`" in error.remedy
    monkeypatch.setenv("RAY_ADDRESS", "head:many")
    error = refused(values, tmp_path, "RAY_ADDRESS", "cannot be reached", engine="ray")
    assert (error.field, error.value) == ("RAY_ADDRESS", "head:many")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    error = refused(values, tmp_path, "scoring.precision", engine="ray", precision="auto")
    assert "bfloat16" in error.remedy


def test_workers_that_had_worked_are_lost_with_their_machine(monkeypatch) -> None:
    """The loss of a machine's eight workers between two stores does not mean that no worker can take a
    teacher.
    """
    monkeypatch.setattr("ray.kill", lambda actor: None)
    said: list[str] = []
    pool = ray_engine.Workers(ray_engine.Ray(), said.append)
    work = ray_engine.Work(deque())
    pool.pool = [ray_engine.Worker(object(), new=False) for _ in range(8)]
    for worker in list(pool.pool):
        pool.lose(work, worker, None, RuntimeError("gone"))
    assert len(said) == 8
    new = [ray_engine.Worker(object()) for _ in range(3)]
    pool.pool = list(new)
    for worker in new[:2]:
        pool.lose(work, worker, None, RuntimeError("gone"))
    with pytest.raises(ClusterError, match="workers were lost before they began, 3 times, last: gone"):
        pool.lose(work, new[2], None, RuntimeError("gone"))


def test_a_worker_that_fits_nowhere(values, tmp_path, address) -> None:
    with pytest.raises(ClusterError, match=r"num_cpus 4000.* no machine has more than"):
        scored(values, tmp_path / "run", engine="ray", ray={"num_cpus": 4000})
