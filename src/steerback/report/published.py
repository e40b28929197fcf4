"""Figures that others have published, packaged with their sources."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steerback import tomlfile
from steerback.stats import wilson

Bound = Literal["", "at most", "below", "at least", "above", "about"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Who published, and how it was measured there."""

    id: str = Field(min_length=1)
    title: str = Field(min_length=1)
    url: str = Field(default="", pattern=r"^(https://\S+)?$")
    prompts: str
    judge: str
    directions: str
    sampling: str
    strength: str
    interval: str
    layers: str = "not stated"
    ways: str = "not stated"
    """In which the code differs from the paper (switches.py)."""


class Figure(_Strict):
    """One published number."""

    experiment: str = Field(min_length=1)
    model: str = ""
    arm: str = ""
    measure: str = Field(min_length=1)
    value: float
    low: float | None = None
    high: float | None = None
    """With `low`: the ends of an interval; alone: `value` to `high` is a range."""
    bound: Bound = ""
    unit: Literal["percent", "score", "points", "ratio", "d", "activation", "count"]
    n: int | None = Field(default=None, ge=1)
    source: str
    note: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> Figure:
        ends = [x for x in (self.low, self.value, self.high) if x is not None]
        if ends != sorted(ends):
            raise ValueError("low, value and high should not fall")
        if self.unit == "percent" and (ends[0] < 0 or ends[-1] > 100):
            raise ValueError("a percentage should lie between 0 and 100")
        return self

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval in per cent, trials taken as independent as the authors do; None where
        rate or number of trials is not known exactly."""
        if self.unit != "percent" or self.n is None or self.bound or self.high is not None:
            return None
        low, high = wilson(self.value / 100 * self.n, self.n)
        return 100 * low, 100 * high

    @property
    def shown(self) -> str:
        """The number as published, with its bound or range."""
        sign = {"percent": "%"}.get(self.unit, "")
        number = f"{self.value:g}"
        if self.high is not None and self.low is None:
            number = f"{self.value:g} to {self.high:g}"
        elif self.low is not None:
            number = f"{self.value:g} ({self.low:g} to {self.high:g})"
        return f"{self.bound} {number}{sign}".strip()


class Published(_Strict):
    source: tuple[Source, ...]
    figure: tuple[Figure, ...]

    @model_validator(mode="after")
    def _sources(self) -> Published:
        names = [s.id for s in self.source]
        if len(set(names)) < len(names):
            raise ValueError("two sources have one id")
        for figure in self.figure:
            if figure.source not in names:
                raise ValueError(f"{figure.experiment}: unknown source {figure.source!r}")
        keys = [(f.experiment, f.model, f.arm, f.measure, f.source) for f in self.figure]
        if len(set(keys)) < len(keys):
            raise ValueError("a figure stands twice")
        return self

    def by_source(self, name: str) -> Source:
        return next(s for s in self.source if s.id == name)

    def models(self, experiment: str) -> dict[str, dict[str, Figure]]:
        """model -> measure -> figure, in the order of the file."""
        found: dict[str, dict[str, Figure]] = {}
        for figure in self.figure:
            if figure.experiment == experiment:
                found.setdefault(figure.model, {})[figure.measure] = figure
        return found

    def find(self, experiment: str, measure: str) -> Figure:
        """The first such figure; KeyError if there is none."""
        for figure in self.figure:
            if (figure.experiment, figure.measure) == (experiment, measure):
                return figure
        raise KeyError(f"{experiment}, {measure}")


@cache
def published() -> Published:
    """The packaged table."""
    text = files("steerback").joinpath("data/published.toml").read_text("utf-8")
    return Published.model_validate(tomlfile.parse(text))
