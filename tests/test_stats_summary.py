"""The headline numbers against counts by hand and loops over all pairs of trials."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats_data import arm, trial

from steerback.stats import summarise
from steerback.stats.bootstrap import cluster_codes
from steerback.stats.chance import ChanceAll, ChanceDirection
from steerback.stats.outcomes import Outcome


def slow_chance(outcomes, same_direction=False):
    """Over all ordered pairs of different trials."""
    shares = []
    for i, a in enumerate(outcomes):
        others = [
            b
            for j, b in enumerate(outcomes)
            if j != i and (not same_direction or a.cluster == b.cluster)
        ]
        if a.multi and others:
            shares.append(np.mean([b.first > a.first for b in others]))
    return np.mean(shares) if shares else math.nan


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3, 17), (17, 3), (65, 1)])
@pytest.mark.parametrize("top", [3, 100])
def test_chance_is_the_share_over_all_pairs(shape, top):
    trials = arm(shape[0], *shape, top=top)
    s = summarise(trials, n_resamples=20)
    np.testing.assert_allclose(s.chance_improvement.value, slow_chance(trials))
    np.testing.assert_allclose(s.chance_same_direction.value, slow_chance(trials, True))


@pytest.mark.parametrize("kind", [ChanceAll, ChanceDirection])
def test_a_resample_equals_the_trials_written_out(kind):
    """Counts as weights = the same statistic on copied trials, a trial never against its own copy."""
    trials = arm(5, 7, 4, top=5)
    codes, n_clusters = cluster_codes([o.cluster for o in trials])
    first = np.array([o.first for o in trials])
    multi = np.array([float(o.multi) for o in trials])
    statistic = kind.of(first, multi, codes, n_clusters)
    for seed in range(5):
        counts = np.random.default_rng(seed).multinomial(7, np.full(7, 1 / 7)).astype(float)
        copies = [(i, draw) for i in range(len(trials)) for draw in range(int(counts[codes[i]]))]
        wins = pairs = 0
        for i, draw in copies:
            for j, other in copies:
                near = codes[i] == codes[j] and draw == other
                if multi[i] and i != j and (kind is ChanceAll or near):
                    wins += first[j] > first[i]
                    pairs += 1
        assert statistic(counts[None])[0] == pytest.approx(wins / pairs)


def test_by_hand():
    trials = [
        trial(10.0, 60.0, cluster="a", key="1", thirds=(0.0, 50.0)),
        trial(40.0, 30.0, cluster="a", key="2", thirds=(0.0, 50.0)),
        trial(80.0, cluster="b", key="3", thirds=(50.0, 90.0)),
        trial(40.0, cluster="b", key="4", thirds=(90.0, 10.0), degraded=True),
        trial(None, cluster="c", key="5", degraded=True),
    ]
    s = summarise(trials, protocol="esr", arm="main", model="m", n_resamples=50)
    assert (s.n, s.clusters, s.missing) == (4, 2, 1)
    assert (s.multi_attempt.k, s.multi_attempt.n, s.multi_attempt.missing) == (2, 4, 1)
    assert (s.esr.k, s.esr.n) == (1, 4)
    assert (s.cond_improvement.k, s.cond_improvement.n, s.cond_improvement.clusters) == (1, 2, 1)
    # 10 is beaten by 3 of 3 others, 40 by 1 of 3 (a tie is no win)
    assert s.chance_improvement.value == pytest.approx((1 + 1 / 3) / 2)
    assert s.chance_same_direction.value == pytest.approx(0.5)
    assert s.improvement_above_chance.value == pytest.approx(0.5 - 2 / 3)
    assert s.improvement_above_same_direction.value == pytest.approx(0.0)
    assert s.esr_above_chance.value == pytest.approx(0.5 * (0.5 - 2 / 3))
    assert s.first_score.value == 42.5
    assert (s.first_score.n, s.first_score.missing) == (4, 1)
    assert s.score_delta.value == pytest.approx((50 - 10) / 2)
    assert (s.degraded.k, s.degraded.n, s.degraded.missing) == (2, 5, 0)
    assert (s.on_topic.k, s.steered.k, s.degraded_scored.k) == (2, 1, 1)
    assert (s.implicit_recovery.k, s.implicit_recovery.n) == (1, 4)
    assert s.implicit_decline.k == 1


RATES = ("multi_attempt", "esr", "cond_improvement", "degraded", "on_topic", "steered")
MEANS = (
    "chance_improvement",
    "chance_same_direction",
    "improvement_above_chance",
    "improvement_above_same_direction",
    "esr_above_chance",
    "first_score",
    "score_delta",
)


@given(
    st.integers(0, 999),
    st.sampled_from([1, 3, 17]),
    st.integers(1, 5),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=40)
def test_invariants(seed, clusters, per_cluster, restart, random):
    # Thirds of 100: sums in another order differ in the last bit.
    trials = arm(seed, clusters, per_cluster, restart, missing=0.2, top=3)
    s = summarise(trials, n_resamples=60)
    for name in RATES:
        r = getattr(s, name)
        assert r.n == 0 or 0 <= r.low <= r.rate <= r.high <= 1
    for name in MEANS:
        m = getattr(s, name)
        assert math.isnan(m.low) or math.isnan(m.value) or m.low <= m.value <= m.high
    assert s.n + s.missing == len(trials)
    assert s.on_topic.k + s.steered.k + s.degraded_scored.k == s.n
    assert s.esr.k == s.cond_improvement.k
    assert s.cond_improvement.n == s.multi_attempt.k
    random.shuffle(trials)
    assert repr(summarise(trials, n_resamples=60)) == repr(s)


def test_json_has_the_published_shape_and_no_nan():
    row = summarise(arm(1, 5, 3, restart=0), protocol="esr", n_resamples=20).as_json()
    assert list(row)[:13] == [
        "protocol",
        "arm",
        "model",
        "n",
        "clusters",
        "missing",
        "multi_attempt",
        "esr",
        "cond_improvement",
        "chance_improvement",
        "first_score",
        "degraded",
        "implicit_recovery",
    ]
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["cond_improvement"] == {"rate": None, "low": None, "high": None}
    assert row["multi_attempt"]["rate"] == 0
    assert row["multi_attempt"]["high"] > 0


@pytest.mark.parametrize("trials", [[], [trial(None)]])
def test_nothing_scored_is_unknown_everywhere(trials):
    s = summarise(trials, n_resamples=20)
    assert (s.n, s.missing) == (0, len(trials))
    assert all(math.isnan(getattr(s, name).value) for name in MEANS)


def test_no_restart_bounds_esr_by_the_restarts():
    s = summarise(arm(2, 30, 3, restart=0), n_resamples=20)
    assert s.esr_above_chance.value == 0
    assert s.esr_above_chance.high == s.multi_attempt.high > 0


def test_few_restarts_have_width():
    """Three restarts, all improved: the bootstrap would call improvement certain."""
    trials = [trial(50.0 + i % 40, cluster=f"k{i % 20}", key=f"{i}") for i in range(100)]
    trials += [trial(55.0, 90.0, cluster=f"k{i}", key=f"r{i}") for i in range(3)]
    s = summarise(trials, n_resamples=500)
    assert s.cond_improvement.rate == 1
    assert s.improvement_above_chance.high == pytest.approx(1 - s.chance_improvement.low, abs=0.02)
    assert s.improvement_above_chance.low < 0
    assert s.esr_above_chance.low < 0 < s.esr_above_chance.high


def test_restarts_alone_in_their_direction_have_no_chance_level_there():
    """Two of three restarts improve, but only one of the two that have company."""
    trials = [trial(50.0, cluster=c, key=c + i) for c in "abc" for i in "12"]
    trials += [
        trial(40.0, 90.0, cluster="a", key="r1"),
        trial(60.0, 10.0, cluster="b", key="r2"),
        trial(40.0, 90.0, cluster="d", key="r3"),
    ]
    s = summarise(trials, n_resamples=300)
    m = s.improvement_above_same_direction
    assert s.chance_same_direction.n == 2
    assert s.chance_same_direction.value == 0.5
    assert m.value == 0
    assert -1 <= m.low < -0.3
    assert 0.3 < m.high <= 1


def test_fresh_draws_are_no_better_than_chance_within_the_direction():
    """Restarts that are fresh draws of their direction: the pooled chance level is fooled."""
    above, pooled = [], []
    for seed in range(30):
        s = summarise(arm(seed, 60, 6, spread=30, top=100), n_resamples=2)
        above.append(s.improvement_above_same_direction.value)
        pooled.append(s.improvement_above_chance.value)
    error = np.std(above, ddof=1) / math.sqrt(30)
    assert abs(np.mean(above)) < 3 * error
    assert np.mean(pooled) < -5 * error


def test_the_seed_decides():
    trials = arm(3, 17, 3)
    assert summarise(trials, seed=1) == summarise(trials, seed=1)
    assert summarise(trials, seed=1).first_score != summarise(trials, seed=2).first_score
    assert isinstance(trials[0], Outcome)


def test_unequal_directions_keep_a_known_chance_level_in_bounds():
    """Every restart improves and most are alone: the bound of a difference of shares still holds."""
    trials = [trial(30.0, 90.0, cluster=f"k{i}", key=f"r{i}") for i in range(9)]
    trials += [trial(20.0, cluster="k0", key="x")]
    m = summarise(trials, n_resamples=50).improvement_above_same_direction
    assert m.value == 1
    assert -1 <= m.low <= m.value <= m.high <= 1


def test_order_does_not_change_the_last_bit():
    rng = np.random.default_rng(0)
    trials = [
        trial(float(x), float(y), cluster=f"k{i % 3}", key=f"{i:03d}")
        for i, (x, y) in enumerate(rng.random((65, 2)) * 100)
    ]
    assert summarise(trials[::-1], n_resamples=50) == summarise(trials, n_resamples=50)
