"""What a vLLM worker does with requests, without vLLM: the wire, the buffers, the draw."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from steerback import steer
from steerback.engine.places import Place
from steerback.engine.reading import pooled
from steerback.engine.sampling import RowSettings, draw, uniforms
from steerback.engine.spans import Span, sequence_sites
from steerback.engine.vllm import wire
from steerback.engine.vllm.drawing import Draws, Row
from steerback.engine.vllm.settings import Checker, Settings, check_request
from steerback.engine.vllm.steering import Chunk, Steering
from steerback.errors import UserError
from steerback.types import Intervention, Sampling

D = models.D_MODEL


def add(index: int, value: float, layer: int = 1, positions: str = "generated") -> Intervention:
    return Intervention("add", "sae", index, value, layer, positions=positions)


def clamp(index: int, value: float, layer: int = 1, kind: Any = "clamp") -> Intervention:
    return Intervention(kind, "sae", index, value, layer)


@pytest.fixture
def packer(tmp_path: Path) -> steer.Packer:
    return steer.Packer({"sae": models.sae(tmp_path, models.sae_weights())})


# --- the wire ---------------------------------------------------------------------------------


def test_a_request_goes_over_the_wire_and_back() -> None:
    whole = wire.Request(
        key="a",
        first=3,
        seed=2**62,
        draw=Sampling(temperature=0.1, top_p=0.3, top_k=7, repetition_penalty=1.3),
        edits=(add(1, 0.1 + 0.2), clamp(2, -0.0, kind="clamp-after"), add(3, 4, 2, "from:7")),
        read=wire.Read("sae", 2, (3, 1), "max", 4),
    )
    back = wire.parse(whole.text())
    assert back == whole
    assert wire.parse(wire.Request("b", 0).text()) == wire.Request("b", 0)


GOOD = json.loads(wire.Request("k", 2, edits=(add(1, 2.0),)).text())
READ = {"source": "sae", "layer": 1, "latents": [1], "pool": "max"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit": []}, "request has no 'edit'"),
        ({"first": -1}, "count from 0"),
        ({"first": True}, "must be int"),
        ({"first": "2"}, "must be int"),
        ({"seed": 2**63}, "63 bits"),
        ({"edits": {}}, "must be list"),
        ({"edits": [3]}, "edit must be an object"),
        ({"edits": [{**GOOD["edits"][0], "kind": "scale"}]}, "kind is 'scale'"),
        ({"edits": [{**GOOD["edits"][0], "value": "9"}]}, "must be float"),
        ({"edits": [{**GOOD["edits"][0], "value": 10**400}]}, "not a finite number"),
        ({"edits": [{**GOOD["edits"][0], "index": -1}]}, "count from 0"),
        ({"edits": [{**GOOD["edits"][0], "positions": "from:x"}]}, "positions is 'from:x'"),
        ({"edits": [{**GOOD["edits"][0], "unit": "resid"}]}, "edit has no 'unit'"),
        ({"edits": GOOD["edits"] * 1025}, "too many"),
        ({"edits": [{"kind": "add"}]}, "edit lacks 'source'"),
        ({"draw": {"temperature": -1, "top_p": 1, "top_k": 0, "penalty": 1}}, "temperature is -1"),
        ({"read": {**READ, "pool": "sum"}}, "read.pool is 'sum'"),
        ({"read": {**READ, "latents": ["1"]}}, "numbers from 0"),
        ({"read": {**READ, "skip": -1}}, "count from 0"),
    ],
)
def test_a_bad_request_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wire.parse(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", "[" * 100_000, '{"key": NaN, "first": 1}', b"\x80\x04", None, "x" * 2**21],
)
def test_what_is_no_request_at_all_is_refused(text: object) -> None:
    with pytest.raises(UserError, match="steerback"):
        wire.parse(text)


def test_salts_tell_apart_what_must_not_share_a_cache() -> None:
    plain, other = wire.Request("a", 3), wire.Request("b", 9)
    assert plain.salt is None
    assert other.salt is None
    steered = wire.Request("a", 3, edits=(add(1, 2.0),))
    assert steered.salt == wire.Request("b", 3, edits=(add(1, 2.0),)).salt
    others = [
        wire.Request("a", 4, edits=(add(1, 2.0),)),
        wire.Request("a", 3, edits=(add(1, 2.5),)),
        wire.Request("a", 3, edits=(add(1, 2.0, positions="all"),)),
        wire.Request("a", 3, read=wire.Read("sae", 1, None, "max")),
        wire.Request("b", 3, read=wire.Read("sae", 1, None, "max")),
    ]
    assert len({r.salt for r in [steered, *others]}) == 6


def test_requests_are_checked_against_the_sources(packer: steer.Packer) -> None:
    check_request(wire.Request("a", 1, edits=(add(59, 1.0),)), packer, (1,))
    bad = [
        (wire.Request("a", 1, edits=(add(60, 1.0),)), "no latent 60"),
        (wire.Request("a", 1, edits=(add(10**12, 1.0),)), "no latent"),
        (wire.Request("a", 1, edits=(add(1, 1.0, 2),)), "at layer 2"),
        (wire.Request("a", 1, edits=(clamp(1, 1.0), clamp(1, 2.0))), "clamped twice"),
        (wire.Request("a", 1, edits=(Intervention("add", "asa", 1, 1.0, 1),)), "unknown SAE"),
        (wire.Request("a", 1, read=wire.Read("sae", 1, (1, 60), "max")), "60 is none"),
        (wire.Request("a", 1, read=wire.Read("x", 1, (1,), "max")), "unknown SAE"),
        (wire.Request("a", 1, read=wire.Read("sae", 3, (1,), "max")), "read at layer 3"),
    ]
    for request, message in bad:
        with pytest.raises(UserError, match=message):
            check_request(request, packer, (1,))


def test_settings_survive_json_and_check_extra_arguments(tmp_path: Path) -> None:
    models.sae(tmp_path, models.sae_weights())
    settings = Settings((1, 2), {"sae": Place("sae", str(tmp_path))}, 4)
    config = type("C", (), {})()
    config.additional_config = {"steerback": json.loads(json.dumps(settings.as_json()))}
    config.use_v2_model_runner, config.speculative_config = False, None
    config.parallel_config = type("P", (), {"use_ubatching": False})
    assert Settings.of(config) == settings
    check = Checker(settings)
    check({})
    check({"other": 1})
    check({"steerback": wire.Request("a", 1, edits=(add(1, 2.0),)).text()})
    for extra in ({"steerbck": "x"}, {"Steering": 1}, {"steerback": "{}"}, {"steerback": 3}):
        with pytest.raises(ValueError, match="steer"):
            check(extra)
    config.use_v2_model_runner = True
    with pytest.raises(UserError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        Settings.of(config)
    config.additional_config = {}
    assert Settings.of(config) is None


# --- the stream -------------------------------------------------------------------------------


def some_requests(n: int) -> dict[str, tuple[wire.Request, int]]:
    """Requests of many kinds with the length of their prompt."""
    rng = random.Random(1)
    ways: list[tuple[Intervention, ...]] = [
        (),
        (add(1, 2.0),),
        (add(2, 1.0, positions="all"), clamp(4, 0.0)),
        (clamp(5, 3.0), add(5, 1.0), clamp(6, 0.5, 2)),
        (add(7, 2.0, positions="from:3"), add(8, 1.0), clamp(9, 1.0, kind="clamp-after")),
        (add(3, 1.5, 2, "from:2"),),
    ]
    out = {}
    for i in range(n):
        length = rng.randint(2, 9)
        request = wire.Request(
            f"r{i}", rng.randint(0, length), edits=ways[rng.randrange(len(ways))]
        )
        out[request.key] = request, length
    return out


@pytest.mark.parametrize("n", [1, 3, 17, 65])
def test_chunks_in_any_order_equal_whole_sequences(packer: steer.Packer, n: int) -> None:
    """Requests come, go and are fed in pieces; each token's stream is what the reference makes it."""
    rng = random.Random(n)
    torch.manual_seed(n)
    steering = Steering(packer, (1, 2), 64)
    waiting, at = some_requests(n), dict[str, int]()
    ends = {k: length + rng.randint(1, 6) for k, (_, length) in waiting.items()}
    hidden = {k: torch.randn(ends[k], D) for k in waiting}
    rest = {k: torch.randn(ends[k], D) for k in waiting}
    got: dict[tuple[str, int], list[torch.Tensor]] = {}
    queue = list(waiting)
    while queue or at:
        while queue and len(at) < 6:
            key = queue.pop()
            steering.enter(key, *waiting[key])
            at[key] = 0
        order = rng.sample(sorted(at), len(at))
        chunks = [Chunk(k, at[k], min(rng.randint(1, 5), ends[k] - at[k])) for k in order]
        steering.plan(chunks)
        flat = [torch.cat([t[k][a : a + m] for k, a, m in chunks]) for t in (hidden, rest)]
        for layer in (1, 2):
            new, left = steering.site(layer, flat[0], flat[1])
            assert left is not None
            place = 0
            for k, a, m in chunks:
                piece = slice(place, place + m)
                got.setdefault((k, layer), []).append(new[piece] + left[piece])
                if not any(i.layer == layer for i in waiting[k][0].edits):
                    assert torch.equal(new[piece], hidden[k][a : a + m])
                    assert torch.equal(left[piece], rest[k][a : a + m])
                place += m
        for k, _, m in chunks:
            at[k] += m
            if at[k] == ends[k]:
                steering.leave(k)
                del at[k]
    for (k, layer), pieces in got.items():
        request = waiting[k][0]
        h = hidden[k] + rest[k]
        span = Span(request.edits, request.first, ends[k])
        site = sequence_sites(packer, [span], ends[k]).get(layer)
        want = h if site is None else site(h)
        torch.testing.assert_close(torch.cat(pieces), want, rtol=1e-5, atol=1e-5)
    assert not steering.seats
    assert not any(steering.rows)
    assert len(steering.rows) < 40


def test_a_layer_with_nothing_to_do_is_idle(packer: steer.Packer) -> None:
    steering = Steering(packer, (1, 2), 8)
    steering.enter("a", wire.Request("a", 3, edits=(add(1, 1.0),)), 3)
    steering.enter("b", wire.Request("b", 3), 3)
    steering.plan([Chunk("a", 0, 3), Chunk("b", 0, 3)])
    assert not steering.busy(1)
    steering.plan([Chunk("a", 3, 1), Chunk("b", 3, 1)])
    assert steering.busy(1)
    assert not steering.busy(2)
    steering.leave("a")
    steering.plan([Chunk("b", 4, 1)])
    assert not steering.busy(1)


def test_states_are_shared_and_their_rows_used_again(packer: steer.Packer) -> None:
    steering = Steering(packer, (1,), 8)
    for name in "abc":
        steering.enter(name, wire.Request(name, 0, edits=(add(1, 1.0),)), 1)
    steering.plan([Chunk(name, 1, 1) for name in "abc"])
    assert sum(bool(state) for state in steering.rows) == 1
    kept = steering.edits[1]
    for name in "ab":
        steering.leave(name)
    assert sum(bool(state) for state in steering.rows) == 1
    steering.leave("c")
    steering.leave("nobody")
    size = len(steering.rows)
    for n in range(50):
        steering.enter("d", wire.Request("d", 0, edits=(add(n, 2.0),)), 1)
        steering.plan([Chunk("d", 1, 1)])
        hidden, residual = steering.site(1, torch.zeros(1, D), torch.ones(1, D))
        assert residual is not None
        want = 1 + 2.0 * packer.direction("sae", n)
        torch.testing.assert_close((hidden + residual)[0], want)
        steering.leave("d")
    assert len(steering.rows) == size
    assert steering.edits[1] is kept


@pytest.mark.parametrize("pool", ["none", "max", "mean", "active", wire.STREAM])
@pytest.mark.parametrize("latents", [(3, 1, 3), None])
def test_readings_in_pieces_and_after_a_preemption(
    packer: steer.Packer, pool: str, latents: tuple[int, ...] | None
) -> None:
    h = torch.randn(12, D, generator=torch.Generator().manual_seed(0))
    read = wire.Read("sae", 1, latents, pool, skip=1)
    steering = Steering(packer, (1,), 16)
    steering.enter("x", wire.Request("k", 4, edits=(add(2, 1.0),), read=read), 12)
    for start, stop in ((0, 3), (3, 7), (0, 6), (6, 9), (9, 12), (12, 13)):
        steering.plan([Chunk("x", start, stop - start)])
        steering.site(1, h[start:stop], None)
    edited = h.clone()
    edited[4:] += packer.direction("sae", 2)
    kept = edited[5:]
    if pool == wire.STREAM:
        want = kept.numpy()
    else:
        reader = packer.source("sae").reader(latents)
        want = pooled(reader, kept, pool, 1)  # type: ignore[arg-type]
    found = steering.take(["k", "other"])
    assert set(found) == {"k"}
    np.testing.assert_allclose(found["k"], want, rtol=1e-5, atol=1e-5)
    assert steering.take(["k"]) == {}


def test_a_reading_of_no_tokens_is_still_one(packer: steer.Packer) -> None:
    steering = Steering(packer, (1,), 16)
    steering.enter("x", wire.Request("k", 5, read=wire.Read("sae", 1, (1, 2), "max", 9)), 5)
    steering.plan([Chunk("x", 0, 5)])
    steering.site(1, torch.zeros(5, D), None)
    assert np.isnan(steering.take(["k"])["k"]).all()


# --- the draw ---------------------------------------------------------------------------------


def test_the_forced_token_is_the_engines_own_draw() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 50, generator=generator)
    logits[3, 7] = torch.nan
    settings = [
        Sampling(temperature=0),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=1.3, top_p=0.5, repetition_penalty=2.0),
        Sampling(),
    ]
    outputs: list[list[int]] = [[], [3, 4], [9] * 300, [1]]
    rows = {
        place: Row(f"r{place}", s, place, [place, 2], out)
        for place, s, out in zip((0, 2, 4, 3), settings, outputs, strict=True)
    }
    before = logits.clone()
    assert Draws(rows).force(logits) == ["r3"]
    assert torch.equal(logits[1], before[1])
    for place in (0, 2, 4):
        row = rows[place]
        token = draw(
            before[place : place + 1],
            torch.tensor([[*row.prompt, *row.output]]),
            RowSettings.pack([row.sampling], 50, torch.device("cpu")),
            uniforms(row.seed, len(row.output) + 1)[-1:],
            filters=True,
            greedy=True,
        )
        assert int(logits[place].argmax()) == int(token)
        assert int(logits[place].isfinite().sum()) == 1


def test_a_request_that_leaves_the_draw_to_vllm_is_not_forced() -> None:
    assert Row.of(wire.Request("a", 1), [1], []) is None
    assert Draws().force(torch.zeros(2, 3)) == []
    assert Draws({5: Row("x", Sampling(), 0, [1], [])}).force(torch.zeros(2, 3)) == []


def test_what_is_kept_from_step_to_step_is_what_would_be_made_anew() -> None:
    """Outputs grow, rows come, go and move, and not every step draws for every row."""
    generator = torch.Generator().manual_seed(1)
    outputs: list[list[int]] = [[], [], []]
    sampling = Sampling(temperature=0.9, repetition_penalty=1.7)
    rows = [Row(f"r{i}", sampling, i, [i, 5] * (i + 1), out) for i, out in enumerate(outputs)]
    kept = Draws()
    for step in range(600):
        if step in (0, 7, 300):
            order = [(0, 1, 2), (2, 0), (1, 2, 0)][(0, 7, 300).index(step)]
            kept.rows = {place: rows[i] for place, i in enumerate(order)}
            kept.changed()
        logits = torch.randn(4 - step % 2, 30, generator=generator)
        again = logits.clone()
        assert kept.force(logits) == []
        assert Draws(dict(kept.rows)).force(again) == []
        assert torch.equal(logits, again)
        for place, row in kept.rows.items():
            if place < len(logits):
                outputs[int(row.key[1])].append(int(logits[place].argmax()))
