"""Geometry: distances agree with their formulas; a planted push is seen only where it is in force."""

from __future__ import annotations

from pathlib import Path

import fake_bench as world
import numpy as np
import pytest
from runs import small

from steerback import manifold
from steerback.errors import UserError
from steerback.protocols.base import Analysis
from steerback.protocols.baseline import Baseline
from steerback.protocols.esr import Esr
from steerback.protocols.geometry import Geometry, Settings
from steerback.records import Records
from steerback.run import run
from steerback.store import Store


def texts(n: int, d: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = 10 ** np.linspace(1, -1, d)
    return [(rng.standard_normal((17, d)) * scale + 3).astype(np.float32) for _ in range(n)]


@pytest.mark.parametrize("d", [1, 3, 17])
def test_distances_are_those_of_the_formulas(d: int) -> None:
    seen, unseen = texts(40, d, 0), texts(20, d, 1)
    found = manifold.fit(seen, unseen, share=0.9)
    tokens = np.concatenate(seen).astype(np.float64)
    mean, covariance = tokens.mean(0), np.cov(tokens.T).reshape(d, d)
    shrunk = covariance + manifold.SHRINKAGE * np.trace(covariance) / d * np.eye(d)
    values, vectors = np.linalg.eigh(covariance)
    kept = next(k for k in range(1, d + 1) if values[::-1][:k].sum() >= 0.9 * values.sum() - 1e-12)
    top = vectors[:, ::-1][:, :kept]

    def raw(h: np.ndarray) -> np.ndarray:
        x = h.astype(np.float64) - mean
        inside = np.einsum("nd,de,ne->n", x, np.linalg.inv(shrunk), x)
        return np.stack([np.sqrt(inside), np.linalg.norm(x - x @ top @ top.T, axis=1)], 1)

    assert found.kept == kept
    typical = np.maximum(np.median(raw(np.concatenate(unseen)), axis=0), 1e-12)
    asked = texts(1, d, 2)[0]
    if kept == d:
        typical[1] = 1.0
        np.testing.assert_allclose(
            found.distances(asked)[:, 0], (raw(asked) / typical)[:, 0], rtol=1e-4
        )
    else:
        np.testing.assert_allclose(found.distances(asked), raw(asked) / typical, rtol=1e-4)


def test_unseen_unsteered_text_is_at_distance_one() -> None:
    found = manifold.fit(texts(40, 9, 0), texts(40, 9, 1))
    assert np.median(found.distances(np.concatenate(texts(40, 9, 2))), axis=0) == pytest.approx(
        [1, 1], rel=0.1
    )


def test_without_text_nothing_can_be_fitted() -> None:
    with pytest.raises(UserError, match="run baseline with more prompts"):
        manifold.fit([], texts(1, 3, 0))


# --- the protocol ------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path):
    made = world.World(tmp_path / "run")
    yield made
    made.store.close()


def test_a_planted_push_is_seen_where_it_is_in_force_alone(bench) -> None:
    inputs, size = world.inputs(), Esr.settings(prompts_per_direction=20)
    bench.judge(Esr().plan(inputs, size), {}, 0.5)
    bench.judge(Baseline().plan(inputs, size), {}, 0.0)
    settings = Settings(before=2, after=3)
    found = Geometry().before(bench, inputs, settings)
    assert found["layer"] == 3, "half way from the steer layer to the last"
    assert found["texts"] < 17 * 20, "answers that are shown are not learnt from"
    stored = {"settings": settings.model_dump(mode="json"), "found": found}
    bench.store.put_artifact("found/geometry", stored)
    analysis = Geometry().analyse(bench.records)
    near, outside = ({r[0]: r for r in sheet.rows} for sheet in analysis.sheets)
    off_topic = 2
    assert near["restarted, pushed"][off_topic].low > 2
    assert near["without restart, pushed"][off_topic].low > 2
    for kind in ("restarted, text alone", "without restart, text alone", "unsteered"):
        assert near[kind][off_topic].low < 1.1
        assert near[kind][off_topic].high < 1.5
    assert outside["restarted, pushed"][off_topic].high < 2, "the push lies within the subspace"
    [chart] = analysis.charts
    assert chart.x == (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert all(len(s.values) == 6 for _, series in chart.panels for s in series)


def test_before_it_ran_there_is_nothing_to_say(bench) -> None:
    assert Geometry().analyse(bench.records) == Analysis()
    assert Geometry().plan(world.inputs(), Settings()) == []


def test_on_the_organism_the_push_takes_the_stream_away_from_unsteered_text(tmp_path: Path) -> None:
    amount = {"prompts_per_direction": 8}
    settings = {"baseline": amount, "esr": amount}
    config = small(
        tmp_path / "run",
        protocols=["baseline", "esr", "geometry"],
        directions={"count": 16},
        settings=settings,
    )
    run(config)
    with Store.open(tmp_path / "run", mode="ro") as store:
        analysis = Geometry().analyse(Records(store))
    rows = {r[0]: r for r in analysis.sheets[0].rows}
    assert rows["restarted, pushed"][2].low > rows["unsteered"][2].high
    assert rows["restarted, pushed"][2].value > rows["restarted, text alone"][2].value
