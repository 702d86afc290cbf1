"""Ray: check that it is installed, start or join it quietly, and read its resources."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

from polydistill.config.scoring import Ray
from polydistill.errors import ClusterError, RecipeError

FIELD = "scoring.ray.address"
CONNECT_SECONDS = 5.0
# Read when Ray is imported or starts its processes; a user's own settings stay. SKIP_REGEX silences Ray's
# output about lost workers, beside the exception; there is no other switch. Niceness: Ray's default, 15,
# starves workers beside other processes, and the local engine has 0.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_worker_niceness": "0",
}


def require_ray(engine: str = "scoring.engine") -> None:
    """Raise RecipeError, which says what to install, if Ray is missing; `engine` is the field that asks."""
    if find_spec("ray") is None:
        raise RecipeError(
            engine,
            "ray",
            "the package ray is not installed",
            f"pip install 'polydistill[ray]', or set {engine}: local",
        )


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of packages in this process."""
    # `2.13.0+cpu` and `2.13.0+cu130` are the same code.
    return {name: version(name).partition("+")[0] for name in packages}


def check_versions(expected: dict[str, str], field: str = FIELD) -> None:
    """Raise ClusterError if this process has other versions than the driver."""
    different = [
        f"{name} {installed} (here {expected[name]})"
        for name, installed in versions(list(expected)).items()
        if installed != expected[name]
    ]
    if different:
        raise ClusterError(
            field,
            None,
            f"machine {os.uname().nodename} has {', '.join(different)}",
            "install the same versions on every machine: other code gives other numbers",
        )


def address_of(settings: Ray) -> str | None:
    """The cluster's address, from the recipe or RAY_ADDRESS; None starts Ray on this machine."""
    return settings.address or os.environ.get("RAY_ADDRESS") or None


def _field(settings: Ray, field: str) -> str:
    return field if settings.address or not os.environ.get("RAY_ADDRESS") else "RAY_ADDRESS"


def check_address(settings: Ray, *, field: str = FIELD) -> None:
    """Raise ClusterError if nothing answers at host:port: Ray tries for a minute, then ends the process.

    field  of the address in the recipe
    """
    remedy, address, field = _remedy(field), address_of(settings), _field(settings, field)
    if address is None or address in ("auto", "local"):
        return
    if "://" in address:
        raise ClusterError(
            field,
            address,
            "is an address for Ray's client, but the driver must run on the cluster",
            "run the command on a machine of the cluster, with host:port or `auto`",
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(field, address, f"cannot be reached ({error})", remedy) from error


def start(settings: Ray, *, field: str = FIELD) -> bool:
    """Join the cluster, or start Ray on this machine; False if this process is already connected.

    Raises RecipeError if Ray is not installed, ClusterError if the cluster cannot be joined.
    """
    require_ray(f"{field.partition('.')[0]}.engine")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    # By default Ray would also join the cluster that was last started on this machine.
    address = address_of(settings) or "local"
    check_address(settings, field=field)
    own: dict[str, bool] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ClusterError(
            _field(settings, field), address, f"cannot be joined ({lines[0][:200]})", _remedy(field)
        ) from error
    return True


def _remedy(field: str) -> str:
    return (
        f"check that `ray start --head` runs there and that its port is open, or leave {field} out and "
        "RAY_ADDRESS unset to start Ray on this machine"
    )


def resources() -> list[dict[str, float]]:
    """`CPU` and `GPU` of each live machine of the cluster."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def room(machines: list[dict[str, float]], num_cpus: int, num_gpus: float) -> int:
    """Workers that fit on the machines at a time."""
    total = 0
    for machine in machines:
        fits = int(machine.get("CPU", 0) // num_cpus)
        if num_gpus:
            # Ray divides a GPU among workers, but gives no worker parts of two GPUs.
            gpus = machine.get("GPU", 0)
            fits = min(fits, int(gpus // num_gpus) if num_gpus >= 1 else int(gpus) * int(1 / num_gpus))
        total += fits
    return total


def needs(settings: Ray) -> tuple[float, int]:
    """(GPUs per worker, workers); the cluster's resources set what the settings leave open.

    Raises ClusterError if no worker fits and `workers` is not set: a cluster that will grow needs it.
    """
    machines = resources()
    num_gpus = settings.num_gpus
    if num_gpus is None:
        num_gpus = float(any(machine.get("GPU", 0) >= 1 for machine in machines))
    fits = room(machines, settings.num_cpus, num_gpus)
    if not fits and settings.workers is None:
        most = {
            name: max((machine.get(name, 0) for machine in machines), default=0) for name in ("CPU", "GPU")
        }
        raise ClusterError(
            "scoring.ray",
            None,
            f"a worker needs num_cpus {settings.num_cpus} and num_gpus {num_gpus:g}, but no machine has more "
            f"than {most['CPU']:g} and {most['GPU']:g}",
            "ask for fewer, or set scoring.ray.workers if the cluster will grow",
        )
    return num_gpus, fits if settings.workers is None else settings.workers
