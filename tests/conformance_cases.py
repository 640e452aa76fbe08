"""Reader of the conformance cases in `tests/conformance`: what other libraries computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rnncore.reference import Array, Config, State

FOLDER = Path(__file__).parent / "conformance"

#: Families that this package can run, with the number of cases of each; the others in the folder
#: are for layers that it does not have.
FAMILIES = {"torch": 48, "ragged": 24, "keras": 4}

FLOAT64_TOLERANCE = 1e-11
FLOAT32_TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    """One case: what goes in, what must come out. States are h, or the pair (h, c) for LSTM."""

    id: str
    config: Config
    params: dict[str, Array]
    x: Array  # (T, B, I)
    state: State  # (L*D, B, H)
    lengths: npt.NDArray[np.int64] | None  # (B,)
    y: Array  # (T, B, M)
    final: State
    dy: Array  # weights of the loss sum(y*dy) + sum(final*dfinal)
    dfinal: State
    dx: Array
    dstate: State  # of the initial state
    dparams: dict[str, Array]  # keras: not of every parameter

    @property
    def family(self) -> str:
        """Beginning of the file's name."""
        return self.id.partition("-")[0]


def case_ids(*families: str) -> list[str]:
    """Names of all cases of the given families, by default of all that can be run."""
    chosen = families or tuple(FAMILIES)
    unknown = set(chosen) - set(FAMILIES)
    if unknown:
        raise ValueError(f"families: expected some of {list(FAMILIES)}, got {sorted(unknown)}")
    return sorted(p.stem for p in FOLDER.glob("*.npz") if p.stem.partition("-")[0] in chosen)


def load_case(case_id: str) -> Case:
    """Read one case; a family that cannot be run raises ValueError."""
    if case_id.partition("-")[0] not in FAMILIES:
        raise ValueError(f"case_id: expected a family of {list(FAMILIES)}, got {case_id!r}")
    with np.load(FOLDER / f"{case_id}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    spec = json.loads(str(arrays.pop("spec")))
    if spec["proj_size"] != 0:
        raise ValueError(f"{case_id}: has a projection")
    options = ("cell", "input_size", "hidden_size", "num_layers", "bidirectional", "bias")
    config = Config(
        **{name: spec[name] for name in (*options, "nonlinearity", "reset_after")},
    )

    def state(pattern: str) -> State:
        h = arrays[pattern.format("h")]
        return (h, arrays[pattern.format("c")]) if config.cell == "lstm" else h

    def named(prefix: str) -> dict[str, Array]:
        return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}

    return Case(
        id=case_id,
        config=config,
        params=named("p."),
        x=arrays["x"],
        state=state("{}0"),
        lengths=arrays.get("lengths"),
        y=arrays["y"],
        final=state("{}n"),
        dy=arrays["dy"],
        dfinal=state("d{}n"),
        dx=arrays["dx"],
        dstate=state("d{}0"),
        dparams=named("d."),
    )


def disagreement(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """max|a - b| / max(1, max|b|); NaN anywhere gives NaN, which no tolerance admits."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if a.shape != b.shape:
        raise AssertionError(f"expected shape {b.shape}, got {a.shape}")
    if b.size == 0:
        return 0.0
    return float(np.max(np.abs(a - b)) / max(1.0, float(np.max(np.abs(b)))))
