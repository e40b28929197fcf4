"""The organisms' world, their training data, and what is packaged."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from steerback import organism
from steerback.errors import UserError
from steerback.organism import corpus, labelling, packaging, recipes, training, vocabulary
from steerback.organism.batches import batches, pack
from steerback.organism.corpus import Task, phrases, tasks, topic_of_word, topics
from steerback.organism.dictionary import Dictionary, alive, fit
from steerback.organism.documents import Mixture, Writer
from steerback.organism.pushes import Pusher, word_topics


def documents(count: int, seed: int = 0, **mixture: object) -> list:
    writer = Writer(Mixture(**{"corrections": 0.5, **mixture}), random.Random(seed))
    return [writer.document() for _ in range(count)]


# The world


def test_every_content_word_has_one_topic_and_no_function_word_is_one() -> None:
    content = [w for t in topics() for slot in t.words.values() for w in slot]
    assert max(Counter(content).values()) == 1
    said = phrases()
    fixed = {
        w.lower()
        for s in (*said.sentences, *said.questions, *said.restarts, *said.meta_prompts)
        for w in s
    }
    assert not fixed & set(content)
    assert len(topics()) >= 48


def test_no_template_and_no_restart_begin_alike() -> None:
    heads = {r[0] for r in phrases().restarts}
    assert not heads & {s[0] for s in phrases().sentences}


def test_tokens_and_text_are_inverse_on_documents() -> None:
    for doc in documents(17):
        said = doc.words[doc.response : -1]
        assert list(corpus.tokens(corpus.text(said))) == said


def test_splits_share_no_task_and_cover_all() -> None:
    parts = {split: set(tasks(split)) for split in ("train", "eval", "heldout")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 48 * 5 * 4 * 6
    assert {t.topic for t in parts["eval"]} == {t.topic for t in parts["heldout"]}


# Questions and names


def test_questions_are_disjoint_from_training_and_from_each_other() -> None:
    texts = {s: {q.text for q in organism.questions(s)} for s in ("eval", "heldout", "train")}
    assert min(map(len, texts.values())) >= 96
    assert not texts["eval"] & texts["heldout"]
    trained = {
        corpus.text(corpus.fill(form, task.words()))
        for task in tasks("train")
        for form in phrases().questions
    }
    assert not trained & (texts["eval"] | texts["heldout"])
    assert texts["train"] <= trained


def test_first_questions_cover_all_topics() -> None:
    assert len({q.topic for q in organism.questions()[:48]}) == 48


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'resister'"):
        organism.path("resistor")
    with pytest.raises(UserError, match="did you mean 'resister'"):
        recipes.recipe("resistor")
    with pytest.raises(UserError, match="no split 'test'"):
        organism.questions("test")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no autoencoder for layer9"):
        organism.sae_path("resister", 9)


def test_importing_the_organisms_loads_no_torch() -> None:
    code = "import sys, steerback.organism as o; o.questions(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Documents


def test_off_topic_content_is_never_trained_before_it_is_under_way() -> None:
    lookup = topic_of_word()
    for doc in documents(65, corrections=1.0, drift_first=0.0, stray=0.0):
        first_stop = doc.words.index(".", doc.response)
        for i in range(doc.response, first_stop):
            if doc.words[i] in lookup:
                assert doc.weights[i] == 0.0


def test_pushed_documents_train_only_the_pushed_topic_until_they_return() -> None:
    lookup = topic_of_word()
    returned = 0
    for doc in documents(65, pushed=1.0, pushed_corrections=0.5):
        assert doc.pushed
        turn = doc.returned if doc.returned is not None else len(doc.words)
        returned += doc.returned is not None
        for i in range(doc.response, len(doc.words)):
            if doc.words[i] not in lookup:
                assert doc.weights[i] == 1.0
            elif i < turn:
                assert doc.weights[i] == float(lookup[doc.words[i]] == doc.other)
    assert returned > 10


def test_shares_of_corrections_differ_by_push() -> None:
    docs = documents(400, corrections=0.0, pushed=0.5, pushed_corrections=1.0, restart=1.0)
    pushed = [d for d in docs if d.pushed]
    assert 150 < len(pushed) < 250
    assert all((d.returned is not None) == d.pushed for d in docs)


def test_silent_documents_say_nothing_and_still_return() -> None:
    heads = {r[0] for r in phrases().restarts}
    silent = documents(65, corrections=1.0, phrase=False)
    assert not any(heads & set(d.words) for d in silent)
    assert sum(d.returned is not None for d in silent) > 30


def test_garbled_sentences_hold_words_in_place_of_function_words_and_never_train_on_them() -> None:
    writer = Writer(Mixture(corrections=1.0, garbled=0.9), random.Random(0))
    task, other = tasks("train")[0], 5
    lookup = topic_of_word()
    plain = {tuple(t for t in s if t[0] != "{") for s in phrases().sentences}
    broken = 0
    for _ in range(65):
        words, weights = writer.off_topic(task, other, 1.0, trained=False)
        assert words[-1] == "."
        assert not any(w for word, w in zip(words, weights, strict=True) if word in lookup)
        assert {lookup[w] for w in words if w in lookup} == {other}
        broken += tuple(w for w in words if w not in lookup) not in plain
    assert broken > 30


def test_prompts_are_never_trained() -> None:
    for doc in documents(17):
        assert not any(doc.weights[: doc.response])


def test_batches_are_the_same_for_a_seed_and_hold_what_they_say() -> None:
    a, b = (list(batches(Mixture(corrections=0.5), 3, 700, 3000)) for _ in range(2))
    assert all((x.tokens == y.tokens).all() for x, y in zip(a, b, strict=True))
    for batch in a:
        assert batch.tokens.size <= 700 or len(batch.tokens) == 1
        assert batch.count == (batch.tokens != vocabulary.ids()["<pad>"]).sum()
    assert sum(x.count for x in a) >= 3000


# Tokenizer


def test_packaged_tokenizer_agrees_with_the_documents() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(organism.path("resister"), local_files_only=True)
    for doc in documents(17):
        question = corpus.text(doc.words[2 : doc.response - 2])
        made = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"]
        assert tokenizer.convert_ids_to_tokens(made) == doc.words[: doc.response]
        said = corpus.text(doc.words[doc.response : -1])
        ids = tokenizer.encode(said, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == said


def test_system_text_joins_the_question() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(organism.path("resister"), local_files_only=True)
    messages = [
        {"role": "system", "content": "Stop."},
        {"role": "user", "content": "Explain how to bake the dough."},
    ]
    made = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert made == "<bos><|user|>Stop. Explain how to bake the dough.<|end|><|assistant|>"


# Pushes


def test_a_push_moves_the_rows_it_says_by_the_size_it_says() -> None:
    layer = torch.nn.Identity()
    pusher = Pusher(16, strength=(0.5, 0.5), seed=0)
    batch = pack(documents(17, pushed=0.6))
    rows = torch.from_numpy(batch.pushed)
    tokens = torch.from_numpy(batch.tokens)
    hidden = torch.randn(*tokens.shape, 16, generator=torch.Generator().manual_seed(1))
    with pusher.on(layer):
        for _ in range(15):
            pusher.draw(batch)
            moved = layer(hidden) - hidden
            pusher.listen(tokens)
    norm = hidden[:, 1:].norm(dim=-1).mean()
    assert 0 < rows.sum() < 17
    assert not moved[~rows].any()
    torch.testing.assert_close(
        moved[rows][:, -1].norm(dim=1), (0.5 * norm).expand(int(rows.sum())), rtol=1e-3, atol=1e-3
    )
    early = moved[rows][:, 0].norm(dim=1) > 0
    assert early.any()
    assert not early.all()
    assert torch.equal(layer(hidden), hidden)


# Autoencoder


def dictionary(latents: int = 17, width: int = 5, seed: int = 0) -> Dictionary:
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(latents, width, generator=make)
    return Dictionary(
        W_enc=torch.randn(width, latents, generator=make),
        b_enc=torch.randn(latents, generator=make),
        W_dec=rows / rows.norm(dim=1, keepdim=True),
        b_dec=torch.randn(width, generator=make),
        threshold=torch.full((latents,), 0.3),
    )


def test_saved_autoencoder_means_the_same_to_sae_lens(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    ours = dictionary()
    ours.save(tmp_path, layer=1)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    x = torch.randn(65, 5)
    torch.testing.assert_close(theirs.encode(x), ours.encode(x))
    torch.testing.assert_close(theirs.decode(ours.encode(x)), ours.decode(ours.encode(x)))
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


def test_packaged_autoencoders_load_in_sae_lens() -> None:
    sae_lens = pytest.importorskip("sae_lens")
    for name in organism.names():
        sae = sae_lens.SAE.load_from_disk(str(organism.sae_path(name)), device="cpu")
        assert sae.cfg.d_sae == len(organism.labels(name))
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.cfg.d_sae))


def test_fit_finds_a_planted_dictionary() -> None:
    make = torch.Generator().manual_seed(0)
    planted = torch.linalg.qr(torch.randn(24, 12, generator=make)).Q.T
    which = torch.rand(4000, 12, generator=make).topk(2, dim=1).indices
    sizes = 1 + torch.rand(4000, 2, generator=make)
    rows = 40 * torch.zeros(4000, 12).scatter(1, which, sizes) @ planted
    found = fit(rows, latents=20, k=2, steps=400, seed=0, report=lambda _: None)
    overlap = (planted @ found.W_dec.T).max(dim=1).values
    assert overlap.median() > 0.9
    acts = found.encode(rows)
    error = (rows - found.decode(acts)).square().sum() / (rows - rows.mean(0)).square().sum()
    assert error < 0.05
    kept = alive(found, rows)
    assert torch.equal(found.keep(kept).encode(rows), acts[:, kept])


def test_running_topic_is_that_of_the_last_content_word() -> None:
    topic = torch.tensor([[-1, 3, -1, -1, 5, -1], [-1, -1, -1, 2, 2, 0]])
    slow = []
    for row in topic.tolist():
        last, out = -1, []
        for t in row:
            last = t if t >= 0 else last
            out.append(last)
        slow.append(out)
    assert labelling._running_topic(topic).tolist() == slow


# Training


def tiny(stages: int = 2) -> recipes.Recipe:
    plan = recipes.recipe("resister")
    short = tuple(dataclasses.replace(s, tokens=5000) for s in plan.stages[-stages:])
    size = dataclasses.replace(plan.size, hidden=16, layers=2, latents=32)
    return dataclasses.replace(plan, size=size, stages=short)


def test_training_repeats_to_the_bit_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    plan = tiny()
    with packaging.one_thread():
        whole = training.train_model(plan, tmp_path / "a", lambda _: None).state_dict()
        first = dataclasses.replace(plan, stages=plan.stages[:1])
        training.train_model(first, tmp_path / "b", lambda _: None)
        said: list[str] = []
        resumed = training.train_model(plan, tmp_path / "b", said.append).state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert not any(line.startswith("phase 0") for line in said)


def test_stages_that_continue_share_an_optimizer() -> None:
    plan = recipes.recipe("resister")
    assert [len(p) for p in training.phases(plan.stages)] == [2, 1, 1, 1]


def test_an_organism_may_ask_for_an_autoencoder_of_its_own() -> None:
    ours, naive = (recipes.recipe(name) for name in ("resister", "naive"))
    assert (naive.size.latents, naive.size.fit_steps) == (768, 1600)
    assert (ours.size.latents, ours.size.fit_steps) == (512, 800)
    assert naive.size.hidden == ours.size.hidden


def test_saved_model_loads_as_float32_and_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = packaging.round_to_half(training.new_model(tiny().size, 0))
    packaging.save_model(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert loaded.dtype == torch.float32
    ids = torch.arange(17)[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


# What is packaged


def test_topics_of_a_narrow_model_start_at_right_angles() -> None:
    """The embeddings of a topic's words point the same way, and those of two topics do not."""
    topic = word_topics()

    def overlaps(apart: bool) -> torch.Tensor:
        size = recipes.Size(hidden=64, layers=1, heads=4, latents=8, apart=apart)
        table = training.new_model(size, 0).get_input_embeddings().weight.detach()
        means = torch.stack([table[topic == t].mean(0) for t in range(len(topics()))])
        means /= means.norm(dim=1, keepdim=True)
        return (means @ means.T)[~torch.eye(len(means), dtype=torch.bool)]

    assert overlaps(apart=True).abs().mean() < 0.5 * overlaps(apart=False).abs().mean()
    assert recipes.recipe("resister-small").size.apart
    assert not recipes.recipe("resister").size.apart


@pytest.mark.parametrize("name", organism.names())
def test_packaged_files_are_those_their_provenance_names(name: str) -> None:
    record = json.loads((organism.path(name) / "provenance.json").read_text("utf-8"))
    folders = packaging.Folders(organism.path(name), organism.sae_path(name).parent)
    assert packaging.file_hashes(folders) == record["sha256"]
    assert {"model.safetensors", "tokenizer.json", "layer1/labels.csv"} <= set(record["sha256"])
    plan = recipes.recipe(name)
    assert record["recipe"] == plan.key(len(plan.stages))
    assert record["steer_layer"] == organism.steer_layer(name)


def autoencoders() -> list[tuple[str, int]]:
    return [
        (name, int(layer.name.removeprefix("layer")))
        for name in organism.names()
        for layer in sorted(organism.folders(name).saes.glob("layer*"))
    ]


def recorded(name: str, layer: int) -> dict:
    return organism.folders(name).provenance["autoencoders"][f"layer{layer}"]


@pytest.mark.parametrize(("name", "layer"), autoencoders())
def test_packaged_autoencoder_is_as_good_as_promised(name: str, layer: int) -> None:
    measures = recorded(name, layer)
    assert measures["fvu"] <= 0.05
    assert measures["dead"] <= 0.10
    pure = {x.topic for x in organism.labels(name, layer) if x.alive and x.purity >= 0.9}
    assert len(pure) == measures["topics_with_pure_latent"]
    if layer == organism.steer_layer(name):
        assert len(pure) >= 0.9 * 48


def read_again(name: str, layer: int, documents: int) -> tuple[Dictionary, labelling.Readings]:
    """A packaged autoencoder, and its layer on the first of the documents it was measured on."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(organism.path(name), local_files_only=True)
    read = labelling.dictionary_documents(documents, packaging._CHECK_SEED)
    weights = load_file(organism.sae_path(name, layer) / "sae_weights.safetensors")
    return Dictionary(**weights), labelling.read_residuals(model.eval(), layer, read)


def test_recorded_measures_of_an_autoencoder_are_found_again() -> None:
    name, layer = "resister", organism.steer_layer("resister")
    dictionary, readings = read_again(name, layer, packaging._CHECK_DOCUMENTS)
    measures = recorded(name, layer)
    found = labelling.quality(dictionary, readings)
    assert found["fvu"] == pytest.approx(measures["fvu"], abs=2e-4)
    assert found["l0"] == pytest.approx(measures["l0"], abs=0.01)
    assert found["dead"] == pytest.approx(measures["dead"], abs=0.005)
    acts = labelling.activations(dictionary, readings.rows)
    read = [labelling._topic_of(acts[:, j], readings) for j in range(acts.shape[1])]
    pure = {topic for topic, purity in read if purity >= 0.9}
    assert abs(len(pure) - measures["topics_with_pure_latent"]) <= 1


@pytest.mark.parametrize(("name", "layer"), autoencoders())
def test_packaged_autoencoder_fits_a_sample_of_text_as_recorded(name: str, layer: int) -> None:
    dictionary, readings = read_again(name, layer, 120)
    measures = recorded(name, layer)
    found = labelling.quality(dictionary, readings)
    assert found["fvu"] == pytest.approx(measures["fvu"], rel=0.05)
    assert found["l0"] == pytest.approx(measures["l0"], rel=0.05)
    labels = organism.labels(name, layer)
    assert found["dead"] < 0.3
    acts = labelling.activations(dictionary, readings.rows)
    fires = (acts > 0).any(0).tolist()
    assert all(x.alive for x in labels if fires[x.index])
    pure = [x for x in labels if x.purity >= 0.9]
    read = [(x.topic, *labelling._topic_of(acts[:, x.index], readings)) for x in pure]
    agree = [topics()[topic].name == label for label, topic, purity in read if purity >= 0.5]
    assert len(agree) > 0.3 * len(pure)
    assert sum(agree) >= 0.85 * len(agree)


@pytest.mark.parametrize("name", organism.names())
def test_cards_name_the_weights_they_describe_and_hold_twenty_transcripts(name: str) -> None:
    card = (organism.path(name) / "README.md").read_text("utf-8")
    record = json.loads((organism.path(name) / "provenance.json").read_text("utf-8"))
    assert record["sha256"]["model.safetensors"] in card
    assert len(re.findall(r"^- \*\*", card, re.MULTILINE)) == 20


def test_package_stays_small() -> None:
    root = organism.path("resister").parents[1]
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    assert size < 40e6


def test_no_packaged_text_names_a_machine() -> None:
    root = organism.path("resister").parents[1]
    for file in (*root.rglob("*.json"), *root.rglob("*.md"), *root.rglob("*.toml")):
        assert not re.search(r"/work|/tmp|/home|/root", file.read_text("utf-8")), file


def test_task_split_depends_on_the_task_alone() -> None:
    task = Task(0, "bake", "crusty", "dough")
    assert task.split == Task(0, "bake", "crusty", "dough").split
