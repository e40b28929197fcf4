"""The Ray engine against one process. Needs Ray in the environment: `make test-vllm` has it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed here; `make test-vllm` runs these", allow_module_level=True)

import numpy as np
from runs import small

from steerback import organism
from steerback.config import RunConfig
from steerback.engine.base import Pair, Watch
from steerback.engine.fanout import RayEngine
from steerback.engine.shared import SharedEngine
from steerback.errors import UserError
from steerback.lab import load_engine
from steerback.run import run
from steerback.store import Store
from steerback.types import Generation, Intervention, Message, Sampling, Trial

LAYER = organism.steer_layer("resister")


def engine(kind: str, tmp_path: Path, **more: object) -> SharedEngine:
    config: RunConfig = small(tmp_path, engine={"kind": kind, **more})
    return load_engine(config, 8)[0]


def trials(n: int) -> list[Trial]:
    asked = [q.text for q in organism.questions()[:n]]
    return [
        Trial(
            "test",
            "",
            "m",
            q,
            (Message("user", q),),
            Sampling(max_new_tokens=24),
            seed=i,
            interventions=(Intervention("add", "sae", i, 0.3, LAYER, unit="resid"),) * (i % 2),
        )
        for i, q in enumerate(asked)
    ]


def by_key(made: Iterator[Generation]) -> dict[str, Generation]:
    return {g.trial_key: g for g in made}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SharedEngine, RayEngine]]:
    folder = tmp_path_factory.mktemp("ray")
    one, many = engine("hf", folder), engine("ray", folder, cpus=0.5)
    assert isinstance(many, RayEngine)
    asked = [q.text for q in organism.questions()[:6]]
    assert many.measure_norm(LAYER, asked) == one.measure_norm(LAYER, asked)
    yield one, many
    many.close()


def test_two_actors_say_what_one_process_says(both: tuple[SharedEngine, RayEngine]) -> None:
    one, many = both
    assert many.kind.endswith("2 x fused")
    want, seen = by_key(one.generate(trials(30))), []
    assert by_key(many.generate(trials(30), progress=seen.append)) == want
    assert (seen[-1].done, seen[-1].total) == (30, 30)
    watch = Watch("sae", LAYER, (1, 2))
    a, b = (by_key(e.generate(trials(9), watch=watch)) for e in both)
    for key, generation in a.items():
        assert generation.trace is not None
        assert b[key].trace is not None
        np.testing.assert_array_equal(b[key].trace.values, generation.trace.values)
    pairs = [Pair(g.prompt_ids, g.token_ids) for g in want.values()]
    x, y = (e.read(pairs, source="sae", layer=LAYER, latents=[3, 1]) for e in both)
    for p, q in zip(x, y, strict=True):
        np.testing.assert_array_equal(p.values, q.values)


def test_a_killed_actor_loses_nothing(both: tuple[SharedEngine, RayEngine]) -> None:
    one, many = both
    want = by_key(one.generate(trials(40)))
    victim = many._actors[0]
    going = many.generate(trials(40))
    got = [next(going)]
    many._ray.kill(victim)
    got += going
    assert len(got) == 40
    assert {g.trial_key: g for g in got} == want
    assert many._actors[0] is not victim


@pytest.mark.parametrize(
    ("way", "line"),
    [
        ("die", "4 actors died in a row"),
        ("refuse", "^no such thing$"),
        ("load", "could not start: .*cannot load$"),
    ],
)
def test_what_goes_wrong_in_an_actor_is_one_line(
    both: tuple[SharedEngine, RayEngine], way: str, line: str
) -> None:
    _, many = both

    class Bad:
        kind = "bad"

        def __init__(self) -> None:
            self.norms: dict[int, float] = {}
            if way == "load":
                raise UserError("cannot load")

        def generate(self, trials: object, **given: object) -> list[Generation]:
            import os

            if way == "die":
                os._exit(1)
            raise UserError("no such thing")

    plain = [t for t in trials(3) if not t.interventions]

    def attempt() -> None:
        bad = RayEngine(Bad, many.facts, name="m", sources={}, slots=2, actors=1, cpus=0)
        list(bad.generate(plain))

    with pytest.raises(UserError, match=line):
        attempt()


def test_a_run_on_ray_stores_what_a_run_here_stores(
    both: tuple[SharedEngine, RayEngine], tmp_path: Path
) -> None:
    run(small(tmp_path / "here"))
    run(small(tmp_path / "there", engine={"kind": "ray", "cpus": 0.5}))
    with (
        Store.open(tmp_path / "here", mode="ro") as a,
        Store.open(tmp_path / "there", mode="ro") as b,
    ):
        assert dict(a.trials()) == dict(b.trials())
        assert a.content_digest() == b.content_digest()
        assert b.sessions()[0].facts["engine"].startswith("ray")


def test_an_actor_may_hold_vllm(
    both: tuple[SharedEngine, RayEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here; `make test-vllm` has it")
    one, _ = both
    held = {"actor": "vllm", "actors": 1, "cpus": 0.5, "eager": True, "memory": 0.1}
    many = engine("ray", tmp_path, **held)
    many.norms.update(one.norms)
    assert "vllm" in many.kind
    assert by_key(many.generate(trials(12))) == by_key(one.generate(trials(12)))
    many.close()
