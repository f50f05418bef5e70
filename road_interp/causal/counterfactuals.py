"""Counterfactual pairs: two texts that differ in one variable, the answer to each, and the positions of their spans.

A pair tests whether the model gives the answer of `source` when it reads `base` and the variable's value is taken from `source`.
Pairs come from templates in the format of CausalGym (Arora et al. 2024; `load_pairs`, with two built-in tasks, agreement and
gender), from a JSON-lines file (`read_pairs`), or from Python code that makes `Pair`s. `encode_pairs` tokenises them.
"""

from __future__ import annotations

import os
import random
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from road_interp.arguments import check_argument, checked_list
from road_interp.causal.arguments import check_tokenizer
from road_interp.errors import InputError
from road_interp.files import is_file, parse_json, read_text

FEW = 3  # words at a span; with fewer, such as one for each class, an interval over words says nothing


class Pair(NamedTuple):
    """One counterfactual pair as text.

    Attributes:
        base, source: a text, or its spans by name in order, with their spaces: `{"subject": "The author", "verb": " wrote"}`.
        base_label, source_label: the answer to each text, with the space before it: `" is"`. Without one it continues the last
            word, as "is" does in "The dogis".
        base_class, source_class: values of the variable; by default the answers.
    """

    base: str | Mapping[str, str]
    source: str | Mapping[str, str]
    base_label: str
    source_label: str
    base_class: str | None = None
    source_class: str | None = None


@dataclass(frozen=True)
class CounterfactualPairs:
    """Tokenised pairs; entry `i` of every tuple belongs to pair `i`.

    Attributes:
        name: of the task.
        base, source: texts.
        base_ids, source_ids: their token ids, unpadded, up to the token before the answer.
        base_label, source_label: first token of each answer, tokenised after the base text.
        base_class, source_class: values of the variable.
        positions: by span, for the spans that all texts have: index of the span's last token in base and in source. The span
            "last" is the last token of the text.
        words: by span, its text in base and in source, without spaces around it; for "last" the text's last word.
        stems: of words with several forms, such as singular and plural, what they count as in `clusters`.
    """

    name: str
    base: tuple[str, ...]
    source: tuple[str, ...]
    base_ids: tuple[tuple[int, ...], ...]
    source_ids: tuple[tuple[int, ...], ...]
    base_label: tuple[int, ...]
    source_label: tuple[int, ...]
    base_class: tuple[str, ...]
    source_class: tuple[str, ...]
    positions: Mapping[str, tuple[tuple[int, int], ...]]
    words: Mapping[str, tuple[tuple[str, str], ...]]
    stems: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        return f"CounterfactualPairs({self.name}, {len(self)} pairs, spans {', '.join(self.positions)})"

    @property
    def label_tokens(self) -> list[int]:
        """All answer tokens, sorted."""
        return sorted({*self.base_label, *self.source_label})

    @property
    def deciding_span(self) -> str:
        """The first span at whose last token base and source have been different texts, in any pair.

        Raises InputError for pairs of equal texts.
        """
        texts = list(zip(self.base_ids, self.source_ids, strict=True))
        for span, places in self.positions.items():
            read = ((base[: b + 1], source[: s + 1]) for (base, source), (b, s) in zip(texts, places, strict=True))
            if any(of_base != of_source for of_base, of_source in read):
                return span
        raise InputError(f"{self.name}: base and source are the same texts")

    def clusters(self, span: str) -> tuple[tuple[str, str], ...]:
        """The words of base and source that pairs share and intervals are over: those at a span, or, where these are fewer than
        FEW different ones, those at the span that has most forms of words. Forms of one word are one cluster.

        Raises InputError if the pairs do not have the span.
        """
        self.span(span)
        of_span = self._stems(span)
        if len({word for both in of_span for word in both}) >= FEW:
            return of_span
        return self._stems(max(self.words, key=lambda name: len({word for both in self.words[name] for word in both})))

    def _stems(self, span: str) -> tuple[tuple[str, str], ...]:
        return tuple((self.stems.get(base, base), self.stems.get(source, source)) for base, source in self.words[span])

    def span(self, name: str) -> tuple[tuple[int, int], ...]:
        """Positions of a span, in base and in source. Raises InputError if the pairs do not have the span."""
        if name not in self.positions:
            raise InputError(f"'{name}' is not a span of {self.name}; its spans are {', '.join(self.positions)}")
        return self.positions[name]

    def continued(self, tokens: Sequence[Sequence[int]]) -> CounterfactualPairs:
        """The pairs with further tokens after every text: pair `i` gets list `i` modulo their number.

        Positions stay, so that the span "last" is still the last token of the text before them.
        """
        texts = [
            tuple((*ids, *tokens[number % len(tokens)]) for number, ids in enumerate(side))
            for side in (self.base_ids, self.source_ids)
        ]
        return replace(self, base_ids=texts[0], source_ids=texts[1])

    def with_arbitrary_labels(self, vocabulary: int, seed: int = 0) -> CounterfactualPairs:
        """The control task (Hewitt & Liang 2019): each answer token is mapped to a random token of the vocabulary.

        The mapping depends on the seed only, so it is the same for every split.
        """
        mapping = random.Random(seed).sample(range(vocabulary), vocabulary)
        labels = [tuple(mapping[label] for label in side) for side in (self.base_label, self.source_label)]
        return replace(self, name=f"{self.name}, arbitrary answers", base_label=labels[0], source_label=labels[1])


class Splits(NamedTuple):
    """Training, validation and test pairs."""

    train: CounterfactualPairs
    validation: CounterfactualPairs
    test: CounterfactualPairs


def check_splits(function: str, splits: object, chooses: bool = False) -> None:
    """Raise InputError unless pairs are divided into `Splits`. Warns of test pairs that are also training pairs, or validation
    pairs where these choose what is tested."""
    if not isinstance(splits, Splits):
        raise InputError(
            f"{function} needs Splits(train, validation, test), as load_pairs returns, not {type(splits).__name__}: "
            "interchanges are trained on pairs of train and measured on those of test"
        )
    test = splits.test
    for what, others in {"training": splits.train, **({"validation": splits.validation} if chooses else {})}.items():
        known = set(zip(others.base, others.source, strict=True))
        if shared := sum(pair in known for pair in zip(test.base, test.source, strict=True)):
            warnings.warn(
                f"{test.name}: {shared} of {len(test)} test pairs are also {what} pairs; the scores are not those of unseen "
                "pairs",
                stacklevel=3,
            )


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Read pairs from a file with one JSON object per line, whose keys are the fields of `Pair`.

    Raises InputError if the file does not exist, is not text or is empty, and for a line that is not a pair.
    """
    check_argument("causal.read_pairs", path, (str, os.PathLike), "the path of a file")
    path = Path(path)
    if not is_file(path):
        raise InputError(f"{path} does not exist")
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                pairs.append(_pair(parse_json(line)))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}, line {number}: not a pair ({error}); its keys are {', '.join(Pair._fields)}") from None
    if not pairs:
        raise InputError(f"{path} holds no pairs")
    return pairs


def _pair(content: Any) -> Pair:
    """The pair of a line. Raises TypeError for other keys, and for a pair that is none."""
    if not isinstance(content, dict):
        raise TypeError("not an object")
    if unknown := [key for key in content if key not in Pair._fields]:
        raise TypeError(f"unknown key '{unknown[0]}'")
    if missing := [key for key in Pair._fields if key not in content and key not in Pair._field_defaults]:
        raise TypeError(f"key '{missing[0]}' is missing")
    pair = Pair(**content)
    if isinstance(pair.base, dict) and isinstance(pair.source, dict) and set(pair.base) != set(pair.source):
        raise TypeError(f"the spans of base and source differ: {', '.join(pair.base)}, and {', '.join(pair.source)}")
    _check_texts(pair)
    return pair


def _check_texts(pair: Pair) -> None:
    """Raise TypeError for values that are not texts, or spans for the two texts."""
    for name, value in pair._asdict().items():
        spans = value.values() if name in ("base", "source") and isinstance(value, dict) else (value,)
        if not all(isinstance(each, str) for each in spans) and not (value is None and name.endswith("class")):
            raise TypeError(f"'{name}' is not a text")


def encode_pairs(
    pairs: Iterable[Pair] | Callable[[], Iterable[Pair]] | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    name: str = "pairs",
    prefix: str = "",
    stems: Mapping[str, str] | None = None,
) -> CounterfactualPairs:
    """Tokenise pairs, given directly, by a callable or as a file, and find their answer tokens and span positions.

    A text is tokenised as a whole, as it would be without spans, and without spaces at its end, with which answers begin. The
    position of a span is the token that contains its last character other than white space, so it is defined in base and source
    whatever the number of tokens of the span.

    Args:
        pairs: as values, or a function that returns them, or the path of a file as in `read_pairs`.
        name: of the task. A warning names it where an answer goes on with the last word of its text.
        prefix: text before every text, such as the model's separator of documents. In many models the state of the very first
            token has an extreme norm that is nearly independent of the word; unless the tokeniser adds a token at the beginning,
            that token would be the first word of the text.
        stems: of words with several forms, what they count as in intervals: `{"dogs": "dog"}`.

    Raises:
        InputError: no pairs; an empty text; a slow tokeniser, which has no offsets; two answers with the same first token; an
            answer whose first token would include the end of the text, or is a space alone, as many tokenisers put before a
            digit.
    """
    pairs = _listed_pairs(pairs, name)
    check_tokenizer("causal.encode_pairs", tokenizer)
    check_argument("causal.encode_pairs", prefix, str, "the text before every text, as in prefix=''")
    check_argument("causal.encode_pairs", stems, (Mapping, type(None)), 'the word for every form, as in {"dogs": "dog"}')
    base, source = (encode_texts([getattr(pair, side) for pair in pairs], tokenizer, name, prefix) for side in ("base", "source"))
    base_label = _answers(base, [pair.base_label for pair in pairs], tokenizer, name)
    source_label = _answers(base, [pair.source_label for pair in pairs], tokenizer, name)
    for number, (pair, one, other) in enumerate(zip(pairs, base_label, source_label, strict=True), start=1):
        if one == other:
            answers = f"the answers '{pair.base_label}' and '{pair.source_label}'"
            raise InputError(f"{name}: {answers} of pair {number} begin with the same token")
    shared = [span for span in base[0].ends if all(span in text.ends for text in (*base, *source))]
    return CounterfactualPairs(
        name,
        tuple(text.text for text in base),
        tuple(text.text for text in source),
        tuple(text.ids for text in base),
        tuple(text.ids for text in source),
        base_label,
        source_label,
        tuple(pair.base_class or pair.base_label for pair in pairs),
        tuple(pair.source_class or pair.source_label for pair in pairs),
        {span: tuple((b.ends[span], s.ends[span]) for b, s in zip(base, source, strict=True)) for span in shared},
        {span: tuple((b.words[span], s.words[span]) for b, s in zip(base, source, strict=True)) for span in shared},
        dict(stems or {}),
    )


def _listed_pairs(pairs: Iterable[Pair] | Callable[[], Iterable[Pair]] | str | os.PathLike[str], name: str) -> list[Pair]:
    """The pairs of `encode_pairs`. Raises InputError where there are none, and for one whose fields are not texts."""
    if isinstance(pairs, str | os.PathLike):
        pairs = read_pairs(pairs)
    found = checked_list(
        "causal.encode_pairs",
        pairs() if callable(pairs) and not isinstance(pairs, PreTrainedTokenizerBase) else pairs,
        Pair,
        "Pairs, or the path of a file of pairs",
    )
    if not found:
        raise InputError(f"{name}: there are no pairs")
    for number, pair in enumerate(found, start=1):
        try:
            _check_texts(pair)
        except TypeError as error:
            raise InputError(f"{name}: pair {number} is not a pair ({error})") from None
    return found


class EncodedText(NamedTuple):
    """A text, its token ids up to the last character, and the last token and the words of every span."""

    text: str
    ids: tuple[int, ...]
    ends: dict[str, int]  # by span: index of the token that contains its last character
    words: dict[str, str]


def encode_texts(
    texts: Sequence[str | Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, name: str, prefix: str
) -> list[EncodedText]:
    """Tokenise texts, given as spans or as a whole. Raises InputError for an empty text and a slow tokeniser.

    Warns of texts that begin with a token that the tokeniser adds, too, and of a prefix that is a special token of another one.

    Args:
        name: of the task.
        prefix: text before every text.
    """
    span_texts = [{"text": text} if isinstance(text, str) else dict(text) for text in texts]
    whole = [prefix + "".join(each.values()).rstrip(" ") for each in span_texts]
    encoded = tokenizer(whole, return_offsets_mapping=True)
    results, doubled = [], []
    rows = zip(whole, span_texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for number, (text, spans, ids, offsets) in enumerate(rows, start=1):
        if not text.removeprefix(prefix).strip():
            raise InputError(f"{name}: text {number} is empty")
        if "last" in spans:
            raise InputError(f"{name}: text {number} has a span 'last', which is the name of every text's last token: rename it")
        try:
            ends = _ends(spans, offsets, len(prefix))
        except ValueError:
            raise InputError(f"{name}: the tokeniser leaves out the last character of text {number} or of a span of it") from None
        of_text = encoded.sequence_ids(number - 1)  # None for added tokens; offsets of a line break may be empty
        last = max(index for index, sequence in enumerate(of_text) if sequence is not None)
        if of_text[0] is None and ids[:1] == ids[1:2]:
            doubled.append(tokenizer.decode(ids[:1]))
        kept = tuple(ids[: last + 1])  # drops tokens added at the end, such as EOS
        span_words = {span: spans[span].strip() for span in ends}
        last_word = text.removeprefix(prefix).split()[-1]
        results.append(EncodedText(text, kept, {**ends, "last": last}, {**span_words, "last": last_word}))
    if doubled:
        warnings.warn(
            f"{name}: {len(doubled)} of {len(texts)} texts begin with two {doubled[0]}: the tokeniser adds one, so leave it out "
            "of the prefix and of texts, such as those of a chat template",
            stacklevel=3,
        )
    _warn_of_other_prefix(prefix, tokenizer, name)
    return results


def _warn_of_other_prefix(prefix: str, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Warn of a prefix that looks like a special token, and is none of this tokeniser's."""
    if re.fullmatch(r"<\S+>|\[\w+\]", prefix):
        ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and prefix != tokenizer.unk_token):
            read = f"this tokeniser does not know the prefix '{prefix}', and reads {tokenizer.convert_ids_to_tokens(ids)}"
            warnings.warn(f"{name}: {read}: give the separator of its model's documents, or ''", stacklevel=4)


def _answers(
    texts: Sequence[EncodedText], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[int, ...]:
    """First token of every answer, tokenised after its text."""
    encoded = tokenizer([text.text + answer for text, answer in zip(texts, answers, strict=True)])["input_ids"]
    for text, answer, ids in zip(texts, answers, encoded, strict=True):
        if tuple(ids[: len(text.ids)]) != text.ids or len(ids) == len(text.ids) or not answer.strip():
            raise InputError(f"{name}: the answer '{answer}' does not begin with a new token after '{text.text}'")
    for text, answer in zip(texts, answers, strict=True):
        if re.fullmatch("[A-Za-z]{2}", text.text[-1:] + answer[:1]):
            message = f"{name}: the answer '{answer}' goes on with the last word of '{text.text}'; a new word is ' {answer}'"
            warnings.warn(message, stacklevel=3)
            break
    first = tuple(ids[len(text.ids)] for text, ids in zip(texts, encoded, strict=True))
    blank = {token for token in {*first} if not str(tokenizer.decode([token])).strip()}
    for text, answer, token in zip(texts, answers, first, strict=True):
        if token in blank:
            raise InputError(
                f"{name}: the first token of the answer '{answer}' after '{text.text}' is a space alone, with which other "
                "answers begin, too: end the text with a quotation mark or a bracket, and leave out the space"
            )
    return first


def _ends(spans: Mapping[str, str], offsets: Sequence[tuple[int, int]], start: int) -> dict[str, int]:
    """The token of the last character of every span that is not blank, in a text whose spans begin at the character `start`."""
    ends = {}
    for span, words in spans.items():
        if words.strip():
            ends[span] = _token_at(offsets, start + len(words.rstrip()) - 1)
        start += len(words)
    return ends


def _token_at(offsets: Sequence[tuple[int, int]], character: int) -> int:
    """The token that contains a character, the last one where several tokens are its bytes.

    Raises ValueError for a character that the tokeniser leaves out.
    """
    return max(index for index, (start, stop) in enumerate(offsets) if start <= character < stop)
