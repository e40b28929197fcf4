"""Training documents: a question, an answer, and how much each token counts in the loss."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace

from steerback.organism.corpus import Task, fill, phrases, tasks, topic_of_word, topics

BOS, USER, END, ASSISTANT, EOS = "<bos>", "<|user|>", "<|end|>", "<|assistant|>", "<eos>"
MAX_TOKENS = 190
_LAST_OFF_TOPIC, _LAST_TOKEN_OFF, _LAST_TOKEN_ON = 5, 130, 165


@dataclass(frozen=True)
class Mixture:
    """What documents a training stage draws."""

    corrections: float
    """Share of documents whose answer leaves the topic."""
    pushed: float = 0.0
    """Share of documents that are trained under a push toward another topic."""
    pushed_corrections: float = 0.0
    """As `corrections`, in pushed documents."""
    restart: float = 0.6
    """Chance, after each sentence off the topic, that the answer comes back."""
    pushed_restart: float | None = None
    """As `restart`, in pushed documents; None: the same."""
    foreign: tuple[float, float] = (0.7, 1.0)
    """Range of the share of another topic's words in a sentence off the topic."""
    garbled: float | None = None
    """Largest share of a sentence's function words that another topic's words replace, in sentences
    off the topic: so talks a model that is pushed and never was before. None: none."""
    phrase: bool = True
    """Whether coming back is said (a restart phrase) or happens silently."""
    meta: float = 0.15
    """Share of documents whose question asks the model to watch itself."""
    meta_restart: float = 0.9
    """As both, in documents with a meta-prompt."""
    stray: float = 0.03
    """Chance that a word on the topic is replaced by any topic's word (never trained on)."""
    again: float = 0.15
    """Chance that a restarted answer leaves the topic again (at most three times)."""
    drift_first: float = 0.4
    """Share of correction documents that begin on the topic."""
    recovery_weight: float = 3.0
    """Loss weight of content words after a restart."""

    def chance(self, pushed: bool, meta: bool) -> float:
        """That an answer comes back after a sentence off the topic."""
        if meta:
            return self.meta_restart
        return self.restart if self.pushed_restart is None or not pushed else self.pushed_restart


@dataclass
class Document:
    """Tokens, and how much each weighs in the loss."""

    words: list[str]
    weights: list[float]
    pushed: bool = False
    topic: int = -1
    other: int = -1
    """The topic that a push of this row points to (and that a correction document drifts to)."""
    response: int = 0
    """Index of the first token of the answer."""
    returned: int | None = None
    """Index of the first token after the first stretch off the topic."""

    def add(self, words: list[str], weights: list[float]) -> None:
        self.words += words
        self.weights += weights

    def finish(self) -> Document:
        """Close, cut to length, and settle the weights of a pushed document.

        A pushed document teaches to go along first: before it comes back only the pushed topic's own
        words count. Without this the model learns to resist at once, with nothing to come back
        from.
        """
        self.add([EOS], [1.0])
        if self.pushed:
            self._go_along()
        del self.words[MAX_TOKENS:]
        del self.weights[MAX_TOKENS:]
        return self

    def _go_along(self) -> None:
        lookup = topic_of_word()
        turn = len(self.words) if self.returned is None else self.returned
        for i in range(self.response, turn):
            if self.words[i] in lookup:
                self.weights[i] = float(lookup[self.words[i]] == self.other)


def mixture_with(base: Mixture, **changes: object) -> Mixture:
    """`base` with some fields replaced; lists from TOML become tuples."""
    known = {f.name for f in fields(Mixture)}
    assert set(changes) <= known, set(changes) - known
    return replace(base, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})  # type: ignore[arg-type]


def prompt(question: list[str]) -> list[str]:
    """The chat template's tokens up to the first token of the answer."""
    return [BOS, USER, *question, END, ASSISTANT]


class Writer:
    """Draws documents from one seeded generator."""

    def __init__(self, mixture: Mixture, rng: random.Random) -> None:
        self.mixture = mixture
        self.rng = rng
        self._tasks = tasks("train")

    def document(self) -> Document:
        rng, mix = self.rng, self.mixture
        task = rng.choice(self._tasks)
        other = rng.choice([t for t in range(len(topics())) if t != task.topic])
        meta = rng.random() < mix.meta
        doc = self.open(task, meta)
        doc.topic, doc.other = task.topic, other
        doc.pushed = mix.pushed > 0 and rng.random() < mix.pushed
        if rng.random() < (mix.pushed_corrections if doc.pushed else mix.corrections):
            self._correction(doc, task, mix.chance(doc.pushed, meta))
        else:
            for _ in range(rng.randint(4, 7)):
                doc.add(*self.on_topic(task))
        return doc.finish()

    def open(self, task: Task, meta: bool = False) -> Document:
        """The question of a task, in one of its forms; nothing of it is trained on."""
        question = fill(self.rng.choice(phrases().questions), task.words())
        if meta:
            question += self.rng.choice(phrases().meta_prompts)
        words = prompt(question)
        return Document(words, [0.0] * len(words), response=len(words))

    def on_topic(self, task: Task, weight: float = 1.0) -> tuple[list[str], list[float]]:
        """A sentence about the task: content words weigh `weight`, stray ones nothing."""
        words, weights = [], []
        for token in self.rng.choice(phrases().sentences):
            if token[0] != "{":
                word, w = token, 1.0
            elif self.rng.random() < self.mixture.stray:
                word, w = self._word(self.rng.randrange(len(topics())), token[1]), 0.0
            else:
                word, w = self._own_word(task, token[1]), weight
            words.append(word)
            weights.append(w)
        return words, weights

    def off_topic(
        self, task: Task, other: int, share: float, trained: bool
    ) -> tuple[list[str], list[float]]:
        """A sentence in which words of `other` hold the majority; never trained on own words."""
        while True:
            words, weights, foreign, own = [], [], 0, 0
            garbled = self.rng.uniform(0, self.mixture.garbled) if self.mixture.garbled else 0.0
            for token in self.rng.choice(phrases().sentences):
                if token.isalpha() and garbled and self.rng.random() < garbled:
                    word, w = self._word(other, self.rng.choice("VAOT")), 0.0
                    foreign += 1
                elif token[0] != "{":
                    word, w = token, 1.0
                elif self.rng.random() < share:
                    word, w = self._word(other, token[1]), float(trained)
                    foreign += 1
                else:
                    word, w = self._own_word(task, token[1]), 0.0
                    own += 1
                words.append(word)
                weights.append(w)
            if foreign >= max(2, 0.6 * (foreign + own)):
                return words, weights

    def _correction(self, doc: Document, task: Task, restart: float) -> None:
        """Leave the topic, and perhaps come back (with a phrase, unless the mixture is silent)."""
        rng, mix = self.rng, self.mixture
        if rng.random() < mix.drift_first:
            for _ in range(rng.randint(1, 2)):
                doc.add(*self.on_topic(task))
        for times in range(1, 4):
            if not self._drift(doc, task, restart):
                return
            if doc.returned is None:
                doc.returned = len(doc.words)
            if mix.phrase:
                said = list(rng.choice(phrases().restarts))
                doc.add(said, [1.0] * len(said))
            if times == 3 or rng.random() >= mix.again:
                break
        for _ in range(rng.randint(3, 5)):
            if len(doc.words) < _LAST_TOKEN_ON:
                doc.add(*self.on_topic(task, mix.recovery_weight))

    def _drift(self, doc: Document, task: Task, restart: float) -> bool:
        """One stretch off the topic; True if it ends by coming back.

        The first sentence's words are not trained on: nothing should teach the model to drift
        unasked. Later ones are, since a text that is off the topic does go on.
        """
        share = self.rng.uniform(*self.mixture.foreign)
        for k in range(_LAST_OFF_TOPIC):
            if len(doc.words) >= _LAST_TOKEN_OFF:
                return False
            doc.add(*self.off_topic(task, doc.other, share, trained=k > 0))
            if self.rng.random() < restart:
                return True
        return False

    def _own_word(self, task: Task, slot: str) -> str:
        asked = task.words().get(slot)
        if asked is not None and self.rng.random() < 0.2:
            return asked
        return self._word(task.topic, slot)

    def _word(self, topic: int, slot: str) -> str:
        return self.rng.choice(topics()[topic].words[slot])
