"""Learning-rate schedules: each sets the rate of one optimizer, step by step.

A schedule takes the optimizer's rate as its base when it is made, sets the rate of step 0 at once,
and that of the next step at every call of ``step``; call it after the optimizer's ``step``, once a
batch or once an epoch, as its numbers are meant. These are PyTorch's conventions, and so are the
formulas where nothing else is said. A rate is computed from the number of its step and not from the
rate before, so nothing adds up; only ``ReduceLROnPlateau`` multiplies the rate that it finds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .optimizers import Optimizer
from .parameters import (
    Kind,
    as_real,
    as_scalar,
    as_setting,
    as_size,
    as_text,
    as_uint64,
    check_names,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["CosineLR", "ReduceLROnPlateau", "Schedule", "StepLR", "WarmupLR"]


class Schedule(ABC):
    """What all schedules share: the optimizer, the number of the step, and their state.

    A subclass names its settings, and has the rate of a step.
    """

    # What the settings are, where they are not just finite and >= 0.
    _kinds: ClassVar[Mapping[str, Kind]] = {}

    def __init__(
        self, optimizer: Optimizer, base_lr: float, settings: Mapping[str, object]
    ) -> None:
        self._optimizer = optimizer
        self._settings = self._checked({"base_lr": base_lr, "step": 0.0, **settings})
        self._begin()

    @classmethod
    def _checked(cls, settings: Mapping[str, object]) -> dict[str, float]:
        """Check all settings and return them as floats."""
        kinds: dict[str, Kind] = {"step": "whole", **cls._kinds}
        return {
            name: as_setting(name, value, kinds.get(name, "nonnegative"))
            for name, value in settings.items()
        }

    @abstractmethod
    def _rate(self, step: float) -> float:
        """Compute the rate of a step."""

    def _begin(self) -> None:
        """Set the rate of step 0."""
        self._optimizer.lr = self._rate(0.0)

    def _check_metric(self, metric: object) -> None:
        """Refuse a metric unless the schedule looks at one."""
        if metric is not None:
            name = type(self).__name__
            raise TypeError(f"metric: expected None for {name}, got {as_text(metric)}")

    def _parts(self) -> dict[str, Schedule]:
        """Collect this schedule and those inside it, by the prefix of their names in the state."""
        return {"": self}

    def step(self, metric: float | None = None) -> None:
        """Go to the next step and set its rate.

        Parameters
        ----------
        metric : default None
            What ``ReduceLROnPlateau`` watches, such as the loss on data held out: needed there, and
            by a warm-up in front of it, and refused by all others.

        Raises
        ------
        TypeError
            If ``metric`` is there and should not be, or the reverse, or is no real number. Nothing
            has changed.
        ValueError
            If the rate would no longer be finite, as a gamma above 1 makes it. Nothing has changed.
        """
        self._check_metric(metric)
        step = self._settings["step"] + 1.0
        self._optimizer.lr = self._rate(step)
        self._settings["step"] = step

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return what a resumed run needs: settings, the number of the step, the current rate.

        With this, the optimizer's state and the parameters a run continues bit for bit. The values
        are float64 arrays without axes, so that the dictionary can be saved like parameters, in one
        file with them.

        Examples
        --------
        >>> import numpy as np
        >>> from rnncore.optimizers import SGD
        >>> from rnncore.schedules import StepLR
        >>> optimizer = SGD({"w": np.zeros(2)}, lr=0.5)
        >>> schedule = StepLR(optimizer, 1, gamma=0.5)
        >>> schedule.step()
        >>> state = schedule.state_dict()
        >>> resumed = SGD({"w": np.zeros(2)}, lr=0.5)
        >>> StepLR(resumed, 1).load_state_dict(state)
        >>> resumed.lr
        0.25
        """
        values = {
            prefix + name: np.array(value)
            for prefix, part in self._parts().items()
            for name, value in part._settings.items()
        }
        return {**values, "lr": np.array(self._optimizer.lr)}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Continue where another schedule of the same class stopped, and set the optimizer's rate.

        Parameters
        ----------
        state
            From ``state_dict``. Settings are taken over.

        Raises
        ------
        TypeError
            If ``state`` is no mapping, or a value is no real number.
        ValueError
            If names are missing or unexpected, or a value has axes or is out of range. Nothing has
            changed.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        parts = self._parts()
        check_names("state", self.state_dict(), state)
        settings = {
            prefix: part._checked(
                {name: as_scalar(f"state[{prefix + name!r}]", state[prefix + name])
                 for name in part._settings}
            )
            for prefix, part in parts.items()
        }  # fmt: skip
        self._optimizer.lr = as_scalar("state['lr']", state["lr"])  # checks it before it changes
        for prefix, part in parts.items():
            part._settings = settings[prefix]

    def __repr__(self) -> str:
        """Name the class and the settings."""
        settings = ", ".join(f"{name}={value:g}" for name, value in self._settings.items())
        return f"<{type(self).__name__}: {settings}>"


class StepLR(Schedule):
    """Multiply the rate by a factor every so many steps.

    At step t the rate is ``base * gamma^floor(t / step_size)``.

    Parameters
    ----------
    optimizer
        Whose rate to set; its rate now is the base.
    step_size
        Steps from one drop to the next, 1 or more.
    gamma : default 0.1
        The factor, finite and >= 0.

    Raises
    ------
    TypeError
        If ``optimizer`` is none, ``step_size`` no integer or ``gamma`` no real number.
    ValueError
        If ``step_size`` or ``gamma`` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import SGD
    >>> from rnncore.schedules import StepLR
    >>> optimizer = SGD({"w": np.zeros(2)}, lr=1.0)
    >>> schedule = StepLR(optimizer, 2, gamma=0.5)
    >>> rates = []
    >>> for _ in range(5):
    ...     rates.append(optimizer.lr)
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    _kinds: ClassVar[Mapping[str, Kind]] = {"step_size": "size"}

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        settings = {"step_size": as_size("step_size", step_size), "gamma": gamma}
        super().__init__(optimizer, _rate_of(optimizer), settings)

    def _rate(self, step: float) -> float:
        drops = step // self._settings["step_size"]
        try:
            factor = math.pow(self._settings["gamma"], drops)
        except OverflowError:
            factor = math.inf  # which the optimizer refuses
        return self._settings["base_lr"] * factor


class CosineLR(Schedule):
    """Lower the rate along half a period of a cosine.

    At step t <= steps the rate is ``min_lr + (base - min_lr) (1 + cos(pi t / steps)) / 2``. After
    that it stays ``min_lr``; PyTorch's CosineAnnealingLR would go up again.

    Parameters
    ----------
    optimizer
        Whose rate to set; its rate now is the base.
    steps
        Steps to the end, 1 or more.
    min_lr : default 0.0
        The rate at the end, finite and >= 0.

    Raises
    ------
    TypeError
        If ``optimizer`` is none, ``steps`` no integer or ``min_lr`` no real number.
    ValueError
        If ``steps`` or ``min_lr`` is out of range.

    References
    ----------
    Loshchilov and Hutter, SGDR: stochastic gradient descent with warm restarts, 2017, equation 5,
    without restarts.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import SGD
    >>> from rnncore.schedules import CosineLR
    >>> optimizer = SGD({"w": np.zeros(2)}, lr=1.0)
    >>> schedule = CosineLR(optimizer, 4, min_lr=0.5)
    >>> rates = []
    >>> for _ in range(6):
    ...     rates.append(round(optimizer.lr, 3))
    ...     schedule.step()
    >>> rates
    [1.0, 0.927, 0.75, 0.573, 0.5, 0.5]
    """

    _kinds: ClassVar[Mapping[str, Kind]] = {"steps": "size"}

    def __init__(self, optimizer: Optimizer, steps: int, min_lr: float = 0.0) -> None:
        settings = {"steps": as_size("steps", steps), "min_lr": min_lr}
        super().__init__(optimizer, _rate_of(optimizer), settings)

    def _rate(self, step: float) -> float:
        wave = math.cos(math.pi * min(step / self._settings["steps"], 1.0))
        # Exactly the base at the start and min_lr at the end, where wave is 1 and -1.
        high, low = self._settings["base_lr"], self._settings["min_lr"]
        return high * ((1.0 + wave) / 2.0) + low * ((1.0 - wave) / 2.0)


class WarmupLR(Schedule):
    """Raise the rate along a line, then go on with another schedule, or stay there.

    At step t < steps the rate is ``base * (start_factor + (1 - start_factor) t / steps)``. At step
    ``steps`` the other schedule begins, at its own step 0. This is PyTorch's LinearLR in front of
    another schedule in SequentialLR.

    Parameters
    ----------
    then
        What follows: a schedule that has not made a step, which from now on makes them with this
        one only, or an optimizer, whose rate then stays.
    steps
        Steps of the warm-up, 1 or more.
    start_factor : default 1/3
        With which part of the base the warm-up begins, from 0 to 1.

    Raises
    ------
    TypeError
        If ``then`` is neither schedule nor optimizer, ``steps`` no integer or ``start_factor`` no
        real number.
    ValueError
        If ``steps`` or ``start_factor`` is out of range, or ``then`` has made a step.

    References
    ----------
    Goyal et al., Accurate, large minibatch SGD: training ImageNet in 1 hour, 2017, section 2.2.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import SGD
    >>> from rnncore.schedules import StepLR, WarmupLR
    >>> optimizer = SGD({"w": np.zeros(2)}, lr=1.0)
    >>> schedule = WarmupLR(StepLR(optimizer, 2), 4, start_factor=0.0)
    >>> rates = []
    >>> for _ in range(7):
    ...     rates.append(optimizer.lr)
    ...     schedule.step()
    >>> rates
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.1]
    """

    _kinds: ClassVar[Mapping[str, Kind]] = {"steps": "size"}

    def __init__(self, then: Schedule | Optimizer, steps: int, start_factor: float = 1 / 3) -> None:
        settings = {"steps": as_size("steps", steps), "start_factor": start_factor}
        self._then: Schedule | None = None
        if isinstance(then, Schedule):
            made = then._settings["step"]
            if made:
                expected = "a schedule that has not made a step"
                raise ValueError(f"then: expected {expected}, got one at step {made:g}")
            self._then = then
            super().__init__(then._optimizer, then._settings["base_lr"], settings)
        elif isinstance(then, Optimizer):
            super().__init__(then, then.lr, settings)
        else:
            raise TypeError(f"then: expected a schedule or an optimizer, got {as_text(then)}")

    @classmethod
    def _checked(cls, settings: Mapping[str, object]) -> dict[str, float]:
        checked = super()._checked(settings)
        if checked["start_factor"] > 1.0:
            got = as_text(settings["start_factor"])
            raise ValueError(f"start_factor: expected 0 <= number <= 1, got {got}")
        return checked

    def _parts(self) -> dict[str, Schedule]:
        inside = {} if self._then is None else self._then._parts()
        return {"": self, **{f"then.{prefix}": part for prefix, part in inside.items()}}

    def _check_metric(self, metric: object) -> None:
        if self._then is None:
            super()._check_metric(metric)
        else:
            self._then._check_metric(metric)

    def _rate(self, step: float) -> float:
        start = self._settings["start_factor"]
        part = min(step / self._settings["steps"], 1.0)
        return self._settings["base_lr"] * (start + (1.0 - start) * part)

    def step(self, metric: float | None = None) -> None:
        """Go to the next step and set its rate.

        Parameters
        ----------
        metric : default None
            As the schedule that follows takes it: a plateau needs one at every step, and begins to
            watch it at the first step after the warm-up.

        Raises
        ------
        TypeError
            If ``metric`` is there and should not be, or the reverse, or is no real number. Nothing
            has changed.
        """
        self._check_metric(metric)
        self._settings["step"] += 1.0
        step, steps = self._settings["step"], self._settings["steps"]
        if self._then is None or step < steps:
            self._optimizer.lr = self._rate(step)
        elif step == steps:
            self._then._begin()
        else:
            self._then.step(metric)


class ReduceLROnPlateau(Schedule):
    """Lower the rate when a metric has stopped getting better.

    A metric m is better than the best one so far, b, if it is below ``b - threshold * |b|``, or
    ``b - threshold`` with "abs"; with the mode "max", above the sum. NaN is never better. After
    more than ``patience`` steps in a row that were not better the rate becomes
    ``max(factor * rate, min_lr)``, unless that is higher, and for the next ``cooldown`` steps
    nothing is counted.

    PyTorch's takes ``b * (1 - threshold)``, which for b < 0 accepts worse metrics as better, and
    skips changes of the rate that are below 1e-8.

    Parameters
    ----------
    optimizer
        Whose rate to lower.
    mode : default "min"
        Whether lower metrics are better, "min", or higher ones, "max".
    factor : default 0.1
        From 0 to below 1.
    patience : default 10
        How many steps in a row may pass without a better metric, 0 or more.
    threshold : default 1e-4
        How much better it must be, finite and >= 0.
    threshold_mode : default "rel"
        Whether ``threshold`` is a part of the best metric, "rel", or a difference, "abs".
    cooldown : default 0
        Steps after a change that are not counted, 0 or more.
    min_lr : default 0.0
        Where the rate stops falling, finite and >= 0.

    Raises
    ------
    TypeError
        If ``optimizer`` is none, or an option of another type than above.
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import SGD
    >>> from rnncore.schedules import ReduceLROnPlateau
    >>> optimizer = SGD({"w": np.zeros(2)}, lr=1.0)
    >>> schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    >>> rates = []
    >>> for loss in (3.0, 2.0, 2.0, 2.5, 1.0):
    ...     schedule.step(loss)
    ...     rates.append(optimizer.lr)
    >>> rates
    [1.0, 1.0, 1.0, 0.5, 0.5]
    """

    _kinds: ClassVar[Mapping[str, Kind]] = {
        "maximize": "flag",
        "factor": "fraction",
        "patience": "whole",
        "relative": "flag",
        "cooldown": "whole",
        "best": "real",
        "bad_steps": "whole",
        "cooling_steps": "whole",
    }

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        maximize = _is_second("mode", mode, "min", "max")
        settings = {
            "maximize": maximize,
            "factor": factor,
            "patience": as_uint64("patience", patience, expected="an integer >= 0"),
            "threshold": threshold,
            "relative": 1.0 - _is_second("threshold_mode", threshold_mode, "rel", "abs"),
            "cooldown": as_uint64("cooldown", cooldown, expected="an integer >= 0"),
            "min_lr": min_lr,
            "best": -math.inf if maximize else math.inf,
            "bad_steps": 0.0,
            "cooling_steps": 0.0,
        }
        super().__init__(optimizer, _rate_of(optimizer), settings)

    def _check_metric(self, metric: object) -> None:
        as_real("metric", metric)

    def _rate(self, step: float) -> float:
        del step
        return self._settings["base_lr"]

    def step(self, metric: float | None = None) -> None:
        """Look at the metric, and lower the rate if it is time.

        Parameters
        ----------
        metric
            What is watched, such as the loss on data held out; None is refused.

        Raises
        ------
        TypeError
            If ``metric`` is no real number. Nothing has changed.
        """
        value = as_real("metric", metric)
        values = self._settings
        values["step"] += 1.0
        if self._is_better(value):
            values["best"], values["bad_steps"] = value, 0.0
        else:
            values["bad_steps"] += 1.0
        if values["cooling_steps"]:
            values["cooling_steps"] -= 1.0
            values["bad_steps"] = 0.0
        if values["bad_steps"] > values["patience"]:
            lower = max(self._optimizer.lr * values["factor"], values["min_lr"])
            self._optimizer.lr = min(self._optimizer.lr, lower)
            values["cooling_steps"], values["bad_steps"] = values["cooldown"], 0.0

    def _is_better(self, metric: float) -> bool:
        best = self._settings["best"]
        margin = self._settings["threshold"]
        if self._settings["relative"] and math.isfinite(best):
            margin *= abs(best)
        if self._settings["maximize"]:
            return metric > best + margin
        return metric < best - margin


def _rate_of(optimizer: object) -> float:
    """Return the rate of an optimizer; TypeError for all else."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an optimizer, got {as_text(optimizer)}")
    return optimizer.lr


def _is_second(name: str, value: object, first: str, second: str) -> float:
    """Return 0 for the first of two texts and 1 for the second."""
    if not isinstance(value, str) or value not in (first, second):
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name}: expected {first!r} or {second!r}, got {as_text(value)}")
    return float(value == second)
