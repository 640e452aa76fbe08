"""What rnncore runs on: its version, the instruction level and the threads."""

from __future__ import annotations

from typing import Literal, TypedDict, overload

import numpy as np

from rnncore import _core
from rnncore.parameters import as_text


def set_level(name: str) -> None:
    """Set the instruction level that every later call uses.

    Parameters
    ----------
    name
        One of the names in ``levels()``.

    Raises
    ------
    TypeError
        If ``name`` is no string.
    ValueError
        If this machine has no such level.

    Examples
    --------
    >>> import rnncore as rc
    >>> before = rc.get_level()
    >>> rc.set_level("portable")
    >>> rc.get_level()
    'portable'
    >>> rc.set_level(before)
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected one of {_core.levels()}, got {as_text(name)}")
    _core.set_level(name)


class Config(TypedDict):
    """What ``show_config(mode="dicts")`` returns."""

    version: str
    numpy: str
    level: str
    levels: list[str]
    threads: int
    cores: int


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> Config: ...
def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> Config | None:
    """Show the version, the instruction level and the number of threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        "stdout" prints a table; "dicts" returns the same as a dictionary.

    Returns
    -------
    dict or None
        With ``mode="dicts"`` the keys ``version`` and ``numpy`` (versions), ``level`` (the
        instruction level in use), ``levels`` (those of this machine), ``threads`` (how many a
        call may use) and ``cores`` (how many this process may use, by affinity and quota).

    Raises
    ------
    ValueError
        For another ``mode``.

    Examples
    --------
    >>> import rnncore as rc
    >>> config = rc.show_config(mode="dicts")
    >>> config["version"] == rc.__version__
    True
    >>> config["level"] in config["levels"]
    True
    """
    config = Config(
        version=_core.__version__,
        numpy=np.__version__,
        level=_core.get_level(),
        levels=_core.levels(),
        threads=_core.get_num_threads(),
        cores=_core.cores(),
    )
    if mode == "dicts":
        return config
    if mode != "stdout":
        raise ValueError(f"mode: expected 'stdout' or 'dicts', got {as_text(mode)}")
    rows: dict[str, object] = {**config, "levels": ", ".join(config["levels"])}
    for name, value in rows.items():
        print(f"{name:<8} {value}")
    return None
