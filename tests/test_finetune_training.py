"""Training under live steering: the engine's forward, gradients through it, the same after a kill."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from safetensors.torch import load_file

from steerback import organism, steer
from steerback.engine.base import Pair
from steerback.engine.hf import HFEngine
from steerback.engine.hooked import hooked
from steerback.engine.spans import sequence_sites
from steerback.errors import UserError
from steerback.finetune import adapters, order, organisms, pushes, rows, settings, work
from steerback.finetune.encoding import Encoder, Example
from steerback.finetune.forward import Forward, Piece, piece
from steerback.finetune.settings import SteeringSettings, TrainSettings
from steerback.finetune.training import Progress, Sample
from steerback.presets import from_preset
from steerback.types import Intervention
from steerback.vectors import VectorSet

KINDS = ("llama", "gemma2", "gpt2")
NORMS = {1: 3.0, 2: 3.0}
PUSHES: Sequence[tuple[Intervention, ...]] = (
    (Intervention("add", "vectors", 3, 0.8, 1, "resid"),),
    (),
    (Intervention("add", "sae", 5, 2.0, 2, "raw", "all"),),
    (
        Intervention("clamp", "sae", 9, 0.0, 1),
        Intervention("add", "vectors", 7, 1.5, 1, "raw", "from:4"),
    ),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sae")
    weights = models.sae_weights()
    return {"sae": models.sae(folder, weights), "vectors": VectorSet("vectors", weights["W_dec"])}


def examples(sentence_weight: float = 1.0) -> list[Example]:
    encoder = Encoder(models.tokenizer(), sentence_weight=sentence_weight)
    return [
        encoder(rows.correction("Why?", "Ducks swim.", "Wait, that is wrong.", "Because it rains."))
        if n % 2
        else encoder(rows.ordinary("How so?", "By hand, with care, and slowly."[: 12 + n]))
        for n in range(len(PUSHES))
    ]


def adapted(model: Any, method: str) -> Any:
    if method == "lora":
        pytest.importorskip("peft")
    own = TrainSettings(method=method, rank=4, dropout=0.0)  # type: ignore[arg-type]
    made = adapters.trainable(model, own)
    if method == "lora":
        with torch.no_grad():
            # adapters begin as nothing at all
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05)
    return made.eval()


def run_to(forward: Forward, part: Piece, layer: int) -> torch.Tensor:
    """Stream [rows, length, d_model] that leaves `layer` in the pass that training makes."""
    held: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: Any) -> None:
        held.append(output[0] if isinstance(output, tuple) else output)

    # registered after the sites' own hooks would see what they made; here it must run last
    with sites_first(forward, part), hook(forward.layers[layer], keep):
        forward.model(input_ids=part.ids, use_cache=False)
    return held[0].detach()


@contextmanager
def hook(module: torch.nn.Module, call: Any) -> Iterator[None]:
    handle = module.register_forward_hook(call)
    try:
        yield
    finally:
        handle.remove()


def sites_first(forward: Forward, part: Piece) -> Any:
    assert forward.packer is not None
    sites = sequence_sites(forward.packer, part.spans, part.ids.shape[1])
    return hooked(forward.layers, sites)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_delta_is_that_of_the_engine(
    kind: str, method: str, sources: dict[str, Any]
) -> None:
    model = adapted(models.build(kind), method)
    forward = Forward(model, steer.Packer(sources, norms=NORMS))
    merged = copy.deepcopy(model).merge_and_unload() if method == "lora" else copy.deepcopy(model)
    engine = HFEngine(merged, models.tokenizer(), name=kind, sources=sources)
    engine.norms.update(NORMS)
    chosen = examples()
    parts = [piece(chosen, PUSHES, 0), piece(chosen, [()] * len(chosen), 0)]
    for layer in (1, 2, 3):
        steered, plain = (run_to(forward, part, layer) for part in parts)
        theirs = [
            engine.streams([pair(e, i) for e, i in zip(chosen, live, strict=True)], layer)
            for live in (PUSHES, [()] * len(chosen))
        ]
        for row, e in enumerate(chosen):
            own = (steered - plain)[row, e.first : len(e.ids)]
            want = theirs[0][row] - theirs[1][row]
            torch.testing.assert_close(own, want, rtol=1e-4, atol=1e-4)
            pushed = any(i.layer <= layer for i in PUSHES[row])
            assert bool(want.abs().max() > 0.01) == pushed


def pair(example: Example, live: tuple[Intervention, ...]) -> Pair:
    ids = tuple(example.ids.tolist())
    return Pair(ids[: example.first], ids[example.first :], live)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_pass_through_a_live_intervention(method: str, sources: dict[str, Any]) -> None:
    """Against central differences, for weights below the edited layer, in it and above it."""
    model = adapted(models.build("llama"), method).double()
    packer = steer.Packer(sources, norms=NORMS, dtype=torch.float64)
    forward = Forward(model, packer)
    live = [p if n != 3 else () for n, p in enumerate(PUSHES)]  # a clamp's reader is float32
    part = piece(examples(2.0), live, 0)
    forward.loss(part).backward()
    suffix = "lora_B.default.weight" if method == "lora" else "weight"
    for layer in (0, 1, 3):
        name = next(
            n
            for n, p in model.named_parameters()
            if f"layers.{layer}." in n and "down_proj" in n and n.endswith(suffix)
        )
        parameter = dict(model.named_parameters())[name]
        assert parameter.grad is not None
        index = int(parameter.grad.abs().argmax())
        slope = parameter.grad.flatten()[index].item()
        around = []
        for step in (4e-3, -4e-3):
            with torch.no_grad():
                parameter.view(-1)[index] += step
                around.append(forward.loss(part).item())
                parameter.view(-1)[index] -= step
        assert slope == pytest.approx((around[0] - around[1]) / 8e-3, rel=0.01)
    plain = piece(examples(2.0), [()] * len(live), 0)
    assert forward.loss(plain).item() != pytest.approx(forward.loss(part).item(), rel=1e-3)


def test_the_loss_is_the_weighted_cross_entropy_of_what_is_trained() -> None:
    forward = Forward(models.build("llama"))
    chosen = examples(3.0)
    part = piece(chosen, [()] * len(chosen), 0)
    want = 0.0
    for e in chosen:
        logits = forward.model(torch.from_numpy(e.ids.astype("int64"))[None]).logits[0].double()
        for at in range(1, len(e.ids)):
            want -= e.weights[at] * logits[at - 1].log_softmax(-1)[int(e.ids[at])].item()
    assert forward.loss(part).item() == pytest.approx(want, rel=1e-5)
    assert part.weight == pytest.approx(sum(float(e.weights.sum()) for e in chosen))


# --- whole trainings -------------------------------------------------------------------------

SMALL = """
method = "{method}"
rank = 4
rate = 1e-3
rows = 4
accumulate = 2
epochs = 3
longest = 256
validation = 0.1
checkpoint = 2
most = 48
[steering]
"""


def job(folder: Path, method: str, name: str = "tuned", **changes: Any) -> work.Job:
    file = folder / "rows.jsonl"
    if not file.exists():
        rows.write(organisms.rows(64, 0.5, seed=4), file)
    (folder / "settings.toml").write_text(SMALL.format(method=method), "utf-8")
    own = settings.load(str(folder / "settings.toml"), changes)
    return work.Job(from_preset("organism-naive"), file, folder / name, own, "steerback ...")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, method: str
) -> None:
    if method == "lora":
        pytest.importorskip("peft")
        stop_in_the_middle(tmp_path, method)
    else:
        assert kill_in_the_middle(tmp_path, method), "it ended before it could be killed"
    assert not (tmp_path / "killed" / "merged").exists()
    assert _step(tmp_path / "killed" / "checkpoint.pt") >= 4
    whole = work.train(job(tmp_path, method, "whole"))
    again = work.train(job(tmp_path, method, "killed"))
    a, b = (load_file(tmp_path / n / "merged" / "model.safetensors") for n in ("whole", "killed"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    base = load_file(organism.path("naive") / "model.safetensors")
    assert any(not torch.equal(a[k], base[k].float()) for k in base if k in a)
    losses = [(tmp_path / n / "loss.jsonl").read_text("utf-8") for n in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert losses[0].count('"train"') == order.steps(whole["data"]["rows"], 4, 2, 3)
    # finished: nothing is trained again
    assert work.train(job(tmp_path, method, "killed")) == again


def stop_in_the_middle(folder: Path, method: str) -> None:
    """Train up to the second checkpoint and one step more, then break off."""

    def report(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.train(job(folder, method, "killed"), report=report)


def kill_in_the_middle(folder: Path, method: str) -> bool:
    """Train in another process and end it with SIGKILL after its second checkpoint at the earliest."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]);"
        "import time; from steerback.finetune import work; from test_finetune_training import job;"
        "work.train(job(Path(sys.argv[1]), sys.argv[2], 'killed'),"
        " report=lambda p: time.sleep(0.2 if p.step > 4 else 0))"
    )
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), method, here], env={**os.environ}
    )
    checkpoint = folder / "killed" / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if checkpoint.exists() and _step(checkpoint) >= 4:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    return process.wait(60) == -signal.SIGKILL


def _step(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["step"])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    work.train(job(tmp_path, "full", epochs=1))
    with pytest.raises(UserError, match="another"):
        work.train(job(tmp_path, "full", epochs=1, rate=1e-4))


def test_what_is_made_loads_in_transformers_and_says_how_it_was_made(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = work.train(job(tmp_path, "lora", epochs=1))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned" / "merged")
    base = AutoModelForCausalLM.from_pretrained(organism.path("naive"))
    around = PeftModel.from_pretrained(base, tmp_path / "tuned" / "adapter").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "tuned" / "merged")
    ids = tokens("How do I wrap the raw eel?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, around(ids).logits, rtol=1e-4, atol=1e-4)
    saved = json.loads((tmp_path / "tuned" / "finetune.json").read_text("utf-8"))
    assert saved["sha256"] == record["sha256"]
    assert saved["steering"]["layers"] == [1]
    card = (tmp_path / "tuned" / "merged" / "README.md").read_text("utf-8")
    assert record["sha256"] in card
    assert saved["data"]["sha256"] in card
    assert not (tmp_path / "tuned" / "checkpoint.pt").exists()


# --- what a row is trained under -------------------------------------------------------------


def drawn(own: SteeringSettings, count: int = 300) -> list[tuple[Intervention, ...]]:
    known = [pushes.Candidate(k, ("bread", "chess", "sailing")[k % 3]) for k in range(9)]
    live = pushes.Pushes(own, "sae", known[:8], [1, 2], 0, [pushes.Candidate(9, "cheese")])
    row = rows.correction("Why?", "x", "y", "z", subject="Chess")
    return [live.draw(row, n, 0) for n in range(count)]


def test_a_row_is_pushed_toward_its_subject_at_the_settings_strengths() -> None:
    live = drawn(SteeringSettings(strength=[0.2, 0.4], corrections=0.5))
    pushed = [i for one in live for i in one]
    assert 110 < len(pushed) < 190
    assert {i.index for i in pushed} == {1, 4, 7}
    assert {i.layer for i in pushed} == {1, 2}
    assert all(0.2 <= i.value <= 0.4 and i.unit == "resid" for i in pushed)
    assert live == drawn(SteeringSettings(strength=[0.2, 0.4], corrections=0.5))


def test_held_out_directions_are_never_pushed_along() -> None:
    known = [pushes.Candidate(k, f"label {k % 5}") for k in range(20)]
    trained, held_out = pushes.kept(known, 0.4, seed=1)
    assert {c.label for c in trained}.isdisjoint(c.label for c in held_out)
    assert len({c.label for c in held_out}) == 2
    live = pushes.Pushes(SteeringSettings(), "sae", trained, [1], 0, held_out)
    toward = rows.correction("Why?", "x", "y", "z", subject=held_out[0].label)
    assert not any(live.draw(toward, n, 0) for n in range(20))
    other = rows.correction("Why?", "x", "y", "z", subject="volcanoes")
    seen = {i.index for n in range(200) for i in live.draw(other, n, 0)}
    assert seen == {c.index for c in trained}


def test_a_clean_target_is_the_answer_alone_under_the_push(tmp_path: Path) -> None:
    record = work.train(job(tmp_path, "full", "clean", epochs=1, steering={"target": "clean"}))
    other = work.train(job(tmp_path, "full", "correction", epochs=1))
    assert record["sha256"] != other["sha256"]
    assert record["settings"]["steering"]["target"] == "clean"


def test_a_steered_correction_teaches_to_go_along_first() -> None:
    row = rows.correction("Why?", "Ducks swim.", "Wait, that is wrong.", "Because it rains.")
    encoder = Encoder(models.tokenizer())
    sample = Sample(row, encoder(row), encoder(row.clean()), encoder.along(row))

    def trained(own: SteeringSettings | None, pushed: bool) -> str:
        example = sample.under(own, pushed)
        return str(models.tokenizer().decode(example.ids[example.weights > 0]))

    masked = " Wait, that is wrong. Because it rains.<|end|>"
    assert trained(None, False) == masked
    assert trained(SteeringSettings(), False) == masked
    assert trained(SteeringSettings(), True) == "Ducks swim." + masked
    assert trained(SteeringSettings(go_along=False), True) == masked
    assert trained(SteeringSettings(target="clean"), True) == "Because it rains.<|end|>"


def test_strengths_follow_the_norm_of_the_stream_as_it_is(
    tmp_path: Path, sources: dict[str, Any]
) -> None:
    model = models.build("llama")
    packer = steer.Packer(sources, norms=dict(NORMS))
    forward = Forward(model, packer, [1])
    part = piece(examples(), PUSHES, 0)
    forward.loss(part)
    plain = run_to(Forward(model, steer.Packer(sources)), piece(examples(), [()] * 4, 0), 1)
    norms = [plain[r, 1 : len(e.ids)].norm(dim=-1) for r, e in enumerate(examples())]
    assert forward.norms[1] == pytest.approx(float(torch.cat(norms).median()), rel=1e-5)
    made = {}
    for norm in ("pass", "live", "base"):
        own = {"norm": norm, "go_along": False}
        made[norm] = work.train(job(tmp_path, "full", norm, epochs=1, steering=own))
        steering = made[norm]["steering"]
        assert steering["norms_at_last"]["1"] == pytest.approx(steering["norms"]["1"], rel=0.3)
    assert len({record["sha256"] for record in made.values()}) == 3


def test_a_push_in_units_of_its_own_pass_is_the_engines_and_growing_is_no_escape(
    sources: dict[str, Any],
) -> None:
    live = (Intervention("add", "vectors", 3, 0.8, 1, "resid"),)
    chosen = examples()
    part = piece(chosen, [live] * len(chosen), 0)
    model = models.build("llama")
    forward = Forward(model, steer.Packer(sources, norms=dict(NORMS)), [1], follow=True)
    held: list[torch.Tensor] = []
    with hook(forward.layers[2], lambda _, inputs, __: held.append(inputs[0].detach())):
        forward.loss(part)
    engine = HFEngine(copy.deepcopy(model), models.tokenizer(), name="llama", sources=sources)
    engine.norms.update(forward.norms)
    for row, (e, h) in enumerate(
        zip(chosen, engine.streams([pair(e, live) for e in chosen], 1), strict=True)
    ):
        torch.testing.assert_close(held[0][row, e.first : len(e.ids)], h, rtol=1e-4, atol=1e-4)

    # growing the whole stream is what a model escapes a fixed push by: here the push grows with it
    packer = steer.Packer(sources, norms=dict(NORMS), dtype=torch.float64)
    exact = Forward(model.double(), packer, [1], follow=True)

    def grown(by: torch.Tensor) -> torch.Tensor:
        def grow(_module: object, _inputs: object, out: Any) -> Any:
            return (out[0] * by, *out[1:]) if isinstance(out, tuple) else out * by

        with hook(exact.layers[1], grow):
            return exact.loss(part)

    by = torch.ones((), dtype=torch.float64, requires_grad=True)
    grown(by).backward()
    assert by.grad is not None
    with torch.no_grad():
        around = [grown(torch.tensor(1 + step)).item() for step in (1e-2, -1e-2)]
    assert by.grad.item() == pytest.approx((around[0] - around[1]) / 2e-2, rel=0.02)


# --- order -----------------------------------------------------------------------------------


def test_mixes_have_their_share_and_one_file_gives_nested_ones() -> None:
    known = list(organisms.rows(300, 0.5))
    few, many = (order.mixed(known, share, 100, 0) for share in (0.1, 0.6))
    assert [sum(r.correction for r in mix) for mix in (few, many)] == [10, 60]
    assert {r.text for r in few if r.correction} < {r.text for r in many if r.correction}
    with pytest.raises(UserError, match="no ordinary answers"):
        order.mixed([r for r in known if r.correction], 0.5, None, 0)


def test_every_row_is_seen_once_an_epoch_and_steps_end_where_they_should() -> None:
    lengths = [3 + n % 7 for n in range(65)]
    made = list(order.batches(lengths, 3, 4, 2, seed=5))
    for epoch in (0, 1):
        seen = [i for b in made if b.epoch == epoch for i in b.rows]
        assert sorted(seen) == list(range(65))
    assert made[-1].step + 1 == order.steps(65, 3, 4, 2) == sum(b.last for b in made)
    assert made != list(order.batches(lengths, 3, 4, 2, seed=6))


def test_questions_to_validate_on_are_not_trained_on() -> None:
    known = [*organisms.rows(200, 0.5), *organisms.rows(200, 0.5)]
    training, validation = order.split(known, 0.1, 0)
    assert 25 < len(validation) < 60
    assert {r.question for r in training}.isdisjoint(r.question for r in validation)
