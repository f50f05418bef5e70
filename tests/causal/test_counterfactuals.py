"""Counterfactual pairs: templates, files, spans and splits."""

from __future__ import annotations

import json
import warnings

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from helpers.taught import word_tokenizer
from road_interp.causal.counterfactuals import Pair, encode_pairs, read_pairs
from road_interp.causal.template_pairs import load_pairs
from road_interp.errors import InputError

FILLER_GAP = {
    "templates": ["{lead}{det} {noun} {clause.verb} the {clause.object}"],
    "label": ["lead", "det"],
    "result_prepend_space": False,
    "labels": {"yes": [" he"], "no": [" she"]},
    "variables": {
        "lead": {"yes": ["with", "above"], "no": [""]},
        "det": {"yes": [" the"], "no": ["The"]},
        "noun": ["baker", "banker", "baker"],
        "clause.verb": ["called", "opened"],
        "clause.object": ["taxi", "window"],
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def templates(tmp_path):
    path = tmp_path / "templates.json"
    path.write_text(json.dumps({"gap": FILLER_GAP}))
    return path


@pytest.mark.parametrize(("task", "slot"), [("agreement", "subject"), ("gender", "name")])
def test_splits_share_no_word_of_the_variable(tokenizer, task, slot):
    splits = load_pairs(task, tokenizer, (300, 100, 200))
    assert [len(split) for split in splits] == [300, 100, 200]
    words = []
    for split in splits:
        ends = split.span(slot)
        base = {text.split()[position] for text, (position, _) in zip(split.base, ends, strict=True)}
        words.append({word[:4] for word in base | {text.split()[p] for text, (_, p) in zip(split.source, ends, strict=True)}})
    assert not words[0] & words[1]
    assert not words[0] & words[2]
    assert not words[1] & words[2]


def test_base_and_source_differ_in_the_variable_only(tokenizer):
    pairs = load_pairs("agreement", tokenizer, (200, 1, 1)).train
    for base, source in zip(pairs.base, pairs.source, strict=True):
        differing = [place for place, (one, other) in enumerate(zip(base.split(), source.split(), strict=True)) if one != other]
        assert differing == [1]
    assert all(one != other for one, other in zip(pairs.base_class, pairs.source_class, strict=True))
    assert len(set(zip(pairs.base, pairs.source, strict=True))) == 200
    verbs = {"is": "are", "was": "were", "has": "have"}
    for one, other in zip(pairs.base_label, pairs.source_label, strict=True):
        one, other = sorted(tokenizer.convert_ids_to_tokens([one, other]))
        assert verbs.get(other, verbs.get(one)) in (one, other)


def test_the_same_seed_gives_the_same_pairs(tokenizer):
    first, again, other = (load_pairs("gender", tokenizer, (50, 5, 5), seed) for seed in (0, 0, 1))
    assert first == again
    assert first.train != other.train


def test_positions_hold_the_last_token_of_every_span(tokenizer):
    pairs = encode_pairs(
        [Pair({"who": "the baker", "does": " opened", "what": " the window "}, "the baker cried", " he", " she")], tokenizer
    )
    assert list(pairs.positions) == ["last"]
    spans = {"who": "the baker", "does": " opened", "gap": "", "what": " the window "}
    pairs = encode_pairs(
        [Pair(spans, {"gap": "", "what": "The window", "does": " cried", "who": " with the baker"}, " he", " she")], tokenizer
    )
    assert pairs.positions == {"who": ((1, 5),), "does": ((2, 2),), "what": ((4, 1),), "last": ((4, 5),)}
    assert pairs.base == ("the baker opened the window",)
    assert pairs.base_class == (" he",)
    with pytest.raises(InputError, match="'gap' is not a span of pairs; its spans are who, does, what, last"):
        pairs.span("gap")


def test_a_prefix_moves_every_position(tokenizer):
    pairs = [Pair({"who": "the baker", "does": " cried"}, {"who": "Ida", "does": " cried"}, " he", " she")]
    plain, moved = encode_pairs(pairs, tokenizer), encode_pairs(pairs, tokenizer, prefix="because ")
    assert moved.base == ("because the baker cried",)
    assert moved.base_ids == ((tokenizer.convert_tokens_to_ids("because"), *plain.base_ids[0]),)
    for span, ((base, source),) in plain.positions.items():
        assert moved.span(span) == ((base + 1, source + 1),)


def test_causalgym_templates_with_several_label_slots_and_joint_lists(tokenizer, templates):
    splits = load_pairs("gap", tokenizer, (100, 100, 100), templates=templates)
    texts = {*splits.train.base, *splits.train.source}
    assert texts == {
        f"{lead} {noun} {clause}"
        for lead in ("with the", "above the", "The")
        for noun in ("baker", "banker")
        for clause in ("called the taxi", "opened the window")
    }
    assert len(splits.train) == 16  # all possible pairs
    assert list(splits.train.positions) == ["det", "noun", "clause.verb", "the", "clause.object", "last"]


def test_names_of_slots_may_have_hyphens(tokenizer, templates):
    """As clause.relc-np in CausalGym's gss_subord_obj-relc."""
    words = {name.replace("object", "relc-np"): listed for name, listed in FILLER_GAP["variables"].items()}
    template = "{lead}{det} {noun} {clause.verb} the {clause.relc-np}"
    templates.write_text(json.dumps({"gap": {**FILLER_GAP, "templates": [template], "variables": words}}))
    pairs = load_pairs("gap", tokenizer, (100, 100, 100), templates=templates).train
    assert [*pairs.positions][-2:] == ["clause.relc-np", "last"]
    assert {text.split()[-1] for text in pairs.base} == {"taxi", "window"}
    templates.write_text(json.dumps({"gap": {**FILLER_GAP, "templates": ["{lead}{det} {noun"]}}))
    with pytest.raises(InputError, match="the template '{lead}{det} {noun' has a brace without its partner"):
        load_pairs("gap", tokenizer, templates=templates)


def test_words_of_a_short_list_stay_in_the_split_that_a_longer_list_gave_them(templates):
    nouns = [f"{letter}{letter}{letter}{letter}" for letter in "abcdefghijklmnopqrst"]
    task = {
        "templates": ["{det} {noun} saw {other}"],
        "label": "det",
        "result_prepend_space": True,
        "labels": {"yes": ["he"], "no": ["she"]},
        "variables": {"det": {"yes": ["the"], "no": ["some"]}, "noun": nouns, "other": nouns[::3]},
    }
    templates.write_text(json.dumps({"seen": task}))
    tokenizer = word_tokenizer("the some saw he she", *nouns)
    divided = 0
    for seed in range(10):
        splits = load_pairs("seen", tokenizer, (200, 100, 100), seed, templates)
        words = [{word for text in pairs.base for word in text.split() if word in nouns} for pairs in splits]
        others = [{text.split()[-1] for text in pairs.base} for pairs in splits]
        if others[0] == others[1]:  # a split had none of the short list, so that all splits have all
            assert others[2] == others[0] == set(nouns[::3])
        else:
            divided += 1
            assert sum(map(len, words)) == len(set.union(*words)) == 20
    assert divided >= 3


def test_pairs_come_from_a_file_and_from_a_callable(tokenizer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"base": {"name": "Basil", "rest": " cried because"}, "source": {"name": "Bella", "rest": " cried because"}},
        {"base": {"name": "Ida", "rest": " smiled because"}, "source": {"name": "Otto", "rest": " smiled because"}},
    ]
    answers = ({"base_label": " he", "source_label": " she"}, {"base_label": " she", "source_label": " he"})
    path.write_text("\n\n".join(json.dumps({**line, **answer}) for line, answer in zip(lines, answers, strict=True)))
    pairs = encode_pairs(read_pairs(path), tokenizer)
    assert pairs.base == ("Basil cried because", "Ida smiled because")
    assert pairs.span("name") == ((0, 0), (0, 0))
    assert encode_pairs(lambda: iter(read_pairs(path)), tokenizer) == pairs
    path.write_text('{"base": "Basil"}\n')
    with pytest.raises(InputError, match=r"line 1: not a pair \(key 'source' is missing\); its keys are base, source"):
        read_pairs(path)
    path.write_text(json.dumps({**lines[0], **answers[0], "source_labels": " she"}))
    with pytest.raises(InputError, match=r"line 1: not a pair \(unknown key 'source_labels'\)"):
        read_pairs(path)
    path.write_text(json.dumps({**lines[0], **answers[0], "base": {"nam": "Basil", "rest": " cried because"}}))
    with pytest.raises(InputError, match=r"not a pair \(the spans of base and source differ: nam, rest, and name, rest\)"):
        read_pairs(path)
    path.write_text(json.dumps({**lines[0], **answers[0], "base": ["Basil"]}))
    with pytest.raises(InputError, match="line 1: not a pair .*'base' is not a text"):
        read_pairs(path)
    path.write_text(json.dumps({**lines[0], **answers[0]}).replace("{", '{"base": "Ida", ', 1))
    with pytest.raises(InputError, match=r"line 1: not a pair \(key 'base' is given twice\)"):
        read_pairs(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not a text file"):
        read_pairs(path)
    with pytest.raises(InputError, match="does not exist"):
        read_pairs(tmp_path / "none.jsonl")


def test_a_line_of_a_file_ends_at_its_line_feed(tmp_path):
    """JSON may hold Unicode's other ends of lines as they are."""
    pair = Pair("One\u2028two\x85three", "The author", " is", " are")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair._asdict(), ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_pairs(tmp_path / "pairs.jsonl") == [pair]


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    """Editors on Windows write it at the beginning of a file."""
    pair = Pair("One", "Two", " is", " are")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair._asdict()) + "\n", encoding="utf-8-sig")
    assert read_pairs(tmp_path / "pairs.jsonl") == [pair]


def test_forms_of_a_noun_count_as_one_word(tokenizer):
    pairs = load_pairs("agreement", tokenizer, (200, 1, 1)).train
    words, clusters = pairs.words["subject"], pairs.clusters("subject")
    of_word = {word: stem for both, stems in zip(words, clusters, strict=True) for word, stem in zip(both, stems, strict=True)}
    both_forms = [word for word in of_word if f"{word}s" in of_word]
    assert len(both_forms) > 5
    assert all(of_word[word] == of_word[f"{word}s"] for word in both_forms)
    assert len({*of_word.values()}) > 5
    own = encode_pairs([Pair({"who": base}, {"who": source}, " is", " are") for base, source in words], tokenizer)
    assert own.clusters("who") == words  # those of one's own are not known to be forms
    stems = {f"{word}s": word for word in both_forms}
    own = encode_pairs([Pair({"who": base}, {"who": source}, " is", " are") for base, source in words], tokenizer, stems=stems)
    assert own.clusters("who") == tuple((stems.get(base, base), stems.get(source, source)) for base, source in words)
    with pytest.raises(InputError, match="'nope' is not a span of pairs"):
        own.clusters("nope")


def test_intervals_are_over_the_words_of_the_span_unless_there_are_two(tokenizer):
    """Pairs of four nouns are not evidence for forty objects, whose words are many more."""
    nouns = [("author", "authors"), ("dog", "dogs"), ("girl", "girls"), ("king", "kings")]

    def pairs(words):
        texts = [
            [{"the": "The", "noun": f" {noun}", "object": f" of {number}"} for noun in words[number % len(words)]]
            for number in range(40)
        ]
        return encode_pairs(
            [Pair(*both, " is", " are") for both in texts], tokenizer, stems={plural: word for word, plural in nouns}
        )

    assert pairs(nouns).clusters("noun")[:2] == (("author", "author"), ("dog", "dog"))
    for few in (1, 2):
        assert pairs(nouns[:few]).clusters("noun")[3] == ("of 3", "of 3")


def test_the_last_word_of_a_text_is_without_the_prefix(tokenizer):
    pairs = [Pair({"who": "Basil"}, {"who": "Peggy"}, " is", " are")]
    assert encode_pairs(pairs, tokenizer, prefix="[UNK]").words["last"] == (("Basil", "Peggy"),)


def test_continued_pairs_keep_every_position(tokenizer):
    pairs = load_pairs("agreement", tokenizer, (8, 4, 4), 0).train
    continued = pairs.continued([[1, 2], [3]])
    assert continued.positions == pairs.positions
    assert continued.base_ids[:2] == ((*pairs.base_ids[0], 1, 2), (*pairs.base_ids[1], 3))
    assert [continued.base_ids[row][ends[0]] for row, ends in enumerate(continued.positions["last"])] == [
        ids[-1] for ids in pairs.base_ids
    ]


def test_arbitrary_answers_are_the_same_in_every_split(tokenizer):
    splits = load_pairs("agreement", tokenizer, (60, 30, 30))
    train, test = (pairs.with_arbitrary_labels(len(tokenizer), 3) for pairs in (splits.train, splits.test))
    both = dict(zip(splits.train.base_label, train.base_label, strict=True))
    assert all(both[old] == new for old, new in zip(splits.test.source_label, test.source_label, strict=True))
    assert len(set(both.values())) == 6
    assert train.base_ids == splits.train.base_ids


def test_an_answer_without_a_space_continues_the_last_word():
    """A tokeniser that keeps spaces in its tokens, as language models have: "is" after "dog" is another token than " is"."""
    tokens = {token: number for number, token in enumerate(["[UNK]", "The", " dog", " dogs", " is", " are", "is", "are"])}
    words = Tokenizer(models.WordLevel(tokens, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[a-zA-Z]+?(?=is$|are$| |$)"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spaced = encode_pairs([Pair("The dog", "The dogs", " is", " are")], tokenizer)
    with pytest.warns(UserWarning, match="the answer 'is' goes on with the last word of 'The dog'; a new word is ' is'"):
        joined = encode_pairs([Pair("The dog", "The dogs", "is", "are")], tokenizer)
    assert (spaced.base_label, spaced.source_label) == ((tokens[" is"],), (tokens[" are"],))
    assert (joined.base_label, joined.source_label) == ((tokens["is"],), (tokens["are"],))


def test_an_answer_whose_first_token_is_a_space_alone_is_refused():
    """Every number would count as the answer."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "▁": 1, "(": 2, "1": 3, "2": 4, "▁are": 5, "▁none": 6}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation()]
    )
    words.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(InputError, match="pairs: the first token of the answer ' 12' after 'are' is a space alone"):
        encode_pairs([Pair("are", "are", " none", " 12")], tokenizer)
    bracketed = encode_pairs([Pair("are (", "are (", "12", "2")], tokenizer)
    assert (bracketed.base_label, bracketed.source_label) == ((3,), (4,))


def test_unusable_pairs_say_why(tokenizer, templates):
    for pairs, message in (
        ([], "there are no pairs"),
        ([Pair("", "cried", " he", " she")], "text 1 is empty"),
        ([Pair({"first": "Basil", "last": " cried"}, {"first": "Ida", "last": " cried"}, " he", " she")], "has a span 'last'"),
        ([Pair("Basil cried", "Ida cried", " he", " he")], "of pair 1 begin with the same token"),
        ([Pair("unknown", "Ida cried", "word", " he")], "the answer 'word' does not begin with a new token"),
        ([Pair("Basil cried", "Ida cried", " ", " he")], "does not begin with a new token"),
        ([Pair("Basil cried", "Ida cried", "s", " he")], "the answer 's' does not begin with a new token after 'Basil cried'"),
    ):
        with pytest.raises(InputError, match=message):
            encode_pairs(pairs, tokenizer)
    with pytest.raises(InputError, match="unknown task 'agrement'; did you mean 'agreement'"):
        load_pairs("agrement", tokenizer)
    broken = {key: value for key, value in FILLER_GAP.items() if key != "labels"}
    templates.write_text(json.dumps({"gap": broken, "slotless": {**FILLER_GAP, "templates": ["{lead} {verb}"]}}))
    with pytest.raises(InputError, match="task 'gap' is not in CausalGym's template format.*labels"):
        load_pairs("gap", tokenizer, templates=templates)
    with pytest.raises(InputError, match="task 'slotless': the slot 'verb' has no words"):
        load_pairs("slotless", tokenizer, templates=templates)


LABELS, WORDS = FILLER_GAP["labels"], FILLER_GAP["variables"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": {**LABELS, next(iter(LABELS)): "he"}}, r"labels\.\w+ must be a list of texts that is not empty"),
        ({"labels": {**LABELS, next(iter(LABELS)): []}}, r"labels\.\w+ must be a list of texts that is not empty"),
        ({"labels": dict([next(iter(LABELS.items()))])}, "labels must have at least two classes"),
        ({"variables": {**WORDS, "verb": "cried"}}, r"variables\.verb must be a list of texts that is not empty"),
        ({"variables": {**WORDS, "verb": []}}, r"variables\.verb must be a list of texts that is not empty"),
        ({"variables": {**WORDS, "verb": [1, 2]}}, r"variables\.verb must be a list of texts that is not empty"),
        ({"label": ["lead"]}, "the words of the slot 'det' are listed by class, so 'label' must name it, too"),
        ({"result_prepend_space": "false"}, "result_prepend_space must be true or false, not 'false'"),
        ({"templates": ["The {noun}"]}, r"the template 'The \{noun\}' has no slot of the variable \("),
        (
            {"variables": {**WORDS, "lead": {each: ["the", "a"] for each in LABELS}}},
            "the word '(the|a)' of the slot 'lead' is of the cl",
        ),
        ({"templates": []}, "templates must be a list of texts that is not empty"),
        ({"templates": "{lead} {verb}"}, "templates must be a list of texts that is not empty"),
    ],
)
def test_templates_of_another_structure_are_refused(tokenizer, templates, changed, message):
    templates.write_text(json.dumps({"gap": {**FILLER_GAP, **changed}}))
    with pytest.raises(InputError, match=f"^task 'gap': {message}"):
        load_pairs("gap", tokenizer, templates=templates)


def test_other_numbers_of_pairs_are_refused(tokenizer):
    for counts, message in (
        ((8, 4), r"counts must be the numbers of training, validation and test pairs, not \(8, 4\)"),
        (8, "needs tuple or list, not int: give the numbers of training"),
        ((8, 4, 0), "every number of counts must be a whole number of at least 1, not 0"),
    ):
        with pytest.raises(InputError, match=message):
            load_pairs("gender", tokenizer, counts)
    with pytest.raises(InputError, match="not int: give a JSON file in CausalGym's format"):
        load_pairs("gender", tokenizer, templates=3)


@pytest.mark.parametrize(
    ("pair", "name"),
    [
        (Pair(1, "a man", " he", " she"), "base"),
        (Pair("a man", None, " he", " she"), "source"),
        (Pair({"who": 1}, {"who": "a man"}, " he", " she"), "base"),
        (Pair("a woman", "a man", None, " he"), "base_label"),
        (Pair("a woman", "a man", " she", " he", 5), "base_class"),
    ],
)
def test_pairs_that_are_no_texts_are_refused(pair, name):
    with pytest.raises(InputError, match=rf"pairs: pair 1 is not a pair \('{name}' is not a text\)"):
        encode_pairs([pair], word_tokenizer())
    with pytest.raises(InputError, match="causal.encode_pairs needs str, not int: give the text before every text"):
        encode_pairs([Pair("a woman", "a man", " she", " he")], word_tokenizer(), prefix=3)


def test_a_character_that_the_tokeniser_leaves_out():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    with pytest.raises(InputError, match="pairs: the tokeniser leaves out the last character of text 1 or of a span of it"):
        encode_pairs([Pair("Adrian cried\x07", "Ida cried", " he", " she")], tokenizer)


def line_tokenizer(added="$A [EOS]"):
    """Tokens of a word or a line break, and EOS at an end of every text; offsets have no white space, as Llama 3's."""
    words = ["[UNK]", "[EOS]", "\u010a", "Capital", "\u0120of", "\u0120France", "\u0120Japan", ":", "Paris", "Tokyo"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = processors.TemplateProcessing(single=added, special_tokens=[("[EOS]", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), end])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]")


@pytest.mark.parametrize(("end", "tokens"), [(":\n", [3, 4, 5, 7, 2]), (":\n ", [3, 4, 5, 7, 2]), (":  ", [3, 4, 5, 7])])
def test_a_line_break_at_the_end_of_a_text_is_read(end, tokens):
    base, source = ({"ask": "Capital of", "country": f" {name}", "end": end} for name in ("France", "Japan"))
    pairs = encode_pairs([Pair(base, source, "Paris", "Tokyo")], line_tokenizer())
    assert pairs.base_ids == (tuple(tokens),)
    assert (pairs.base_label, pairs.source_label) == ((8,), (9,))
    assert pairs.positions["country"] == ((2, 2),)
    assert pairs.positions["last"] == ((len(tokens) - 1,) * 2,)


def test_a_line_break_that_has_no_token_is_left_out(tokenizer):
    with_break, without = (
        encode_pairs([Pair(f"Basil cried{end}", f"Ida cried{end}", " he", " she")], tokenizer) for end in ("\n", "")
    )
    assert with_break.base_ids == without.base_ids
    with pytest.raises(InputError, match="text 1 is empty"):
        encode_pairs([Pair("\n", "\n", " he", " she")], tokenizer)


def test_a_line_break_behind_the_last_slot_of_a_template_is_read(templates):
    names = {"old": ["France", "Spain", "Norway"], "new": ["Japan", "Chile", "Peru"]}
    asked = {"templates": ["Capital of {country}\n"], "label": "country", "variables": {"country": names}}
    asked |= {"labels": {"old": ["Paris"], "new": ["Tokyo"]}, "result_prepend_space": False}
    templates.write_text(json.dumps({"ask": asked}))
    pairs = load_pairs("ask", line_tokenizer(), (2, 1, 1), templates=templates).train
    assert {ids[-1] for ids in (*pairs.base_ids, *pairs.source_ids)} == {2}
    assert all(word == word.strip() for both in pairs.words["country"] for word in both)


def test_a_beginning_that_the_tokeniser_adds_to_that_of_a_text_is_warned_of():
    tokenizer = line_tokenizer("[EOS] $A")
    pairs = [Pair("Capital of France:\n", "Capital of Japan:\n", "Paris", "Tokyo")] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_pairs(pairs, tokenizer)
    with pytest.warns(UserWarning, match=r"pairs: 2 of 2 texts begin with two \[EOS\]: the tokeniser adds one"):
        encode_pairs(pairs, tokenizer, prefix="[EOS]")


def test_a_prefix_that_is_a_special_token_of_another_tokeniser_is_warned_of():
    pairs = [Pair("Capital of France:\n", "Capital of Japan:\n", "Paris", "Tokyo")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for known in ("", "Say: ", "[EOS]"):
            encode_pairs(pairs, line_tokenizer(), prefix=known)
    with pytest.warns(UserWarning, match=r"pairs: this tokeniser does not know the prefix '<\|endoftext\|>', and reads \['"):
        encode_pairs(pairs, line_tokenizer(), prefix="<|endoftext|>")
