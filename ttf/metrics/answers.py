"""Scoring answers in words as the official evaluation codes do: TextVQA, VQAv2, POPE, ScienceQA.

The rules are those of the codes, their accidents included, so that published answer files give published numbers:
mmf's and LLaVA's answer processor (TextVQA), the VQA API (VQAv2), LLaVA's scorers (POPE, ScienceQA).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
FULL_STOP = re.compile(r"\.(?!\d)")
FULL_STOPS = int(re.UNICODE)  # official code hands this flag over where the number of replacements stands: 32
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
OPTIONS = "ABCDE"
NO = ("No", "no", "not")
THE_ANSWER_IS = re.compile("The answer is ([A-Z]).")


def _misspelt(form: str) -> list[str]:
    """A contraction with one of its apostrophes left out."""
    return [form[:place] + form[place + 1 :] for place, letter in enumerate(form) if letter == "'"]


SPELLINGS = {wrong: form for form in CONTRACTIONS.split() for wrong in _misspelt(form)} | {"somebody'd": "somebodyd"}


def _without_punctuation(text: str) -> str:
    """Signs next to a space anywhere in the text go, the others become spaces; then full stops, but for decimals."""
    number = COMMA_IN_NUMBER.search(text) is not None
    out = text
    for sign in PUNCTUATION:
        out = out.replace(sign, "" if number or f"{sign} " in text or f" {sign}" in text else " ")
    return FULL_STOP.sub("", out, count=FULL_STOPS)


def _plain_words(text: str) -> str:
    """Lower case, numbers as digits, no articles, contractions with their apostrophes."""
    words = [WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(SPELLINGS.get(word, word) for word in words if word not in ARTICLES)


def vqa_normalised(text: str) -> str:
    """An answer in the VQA API's form."""
    return _plain_words(_without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def textvqa_normalised(text: str) -> str:
    """An answer in TextVQA's form: as the VQA API, after "'s" was split off and commas and question marks taken out."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_normalised(text)


def _leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the answers of min(1, matches among the others / 3)."""
    matches = [prediction == answer for answer in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def textvqa_score(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy in [0, 1] of TextVQA. Raises ``ValueError`` without any answer."""
    _check(answers)
    return _leave_one_out(textvqa_normalised(prediction), [textvqa_normalised(answer) for answer in answers])


def vqav2_score(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy in [0, 1] of the VQA API, which normalises only where the answers are not all equal.

    Raises:
        ValueError: there is no answer.
    """
    _check(answers)
    prediction, *answers = (text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = map(vqa_normalised, (prediction, *answers))
    return _leave_one_out(prediction, answers)


def vqav2_submission_score(prediction: str, answers: Sequence[str]) -> float:
    """``vqav2_score`` of what LLaVA's conversion script submits: the prediction in TextVQA's form."""
    return vqav2_score(textvqa_normalised(prediction), answers)


def _check(answers: Sequence[str]) -> None:
    if not answers:
        raise ValueError("a question without any answer cannot be scored: leave it out of the questions")


def pope_says_yes(text: str) -> bool:
    """Whether an answer counts as yes: no "No", "no" or "not" among the words of its first sentence."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not any(word in NO for word in words)


@dataclass(frozen=True)
class Pope:
    """Counts and scores of one split, in [0, 1]; a share of nothing is 0.

    Attributes:
        tp, fp, tn, fn: answers by what they say and what is right.
        yes_ratio: share of yes among all answers, surplus ones included.
    """

    tp: int
    fp: int
    tn: int
    fn: int
    yes_ratio: float

    @property
    def accuracy(self) -> float:
        return _share(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def precision(self) -> float:
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def pope(says_yes: Sequence[bool], labels: Sequence[bool]) -> Pope:
    """Scores of answers, which are joined with labels in order; more answers than labels count in the yes ratio alone.

    Raises:
        ValueError: fewer answers than labels.
    """
    if len(says_yes) < len(labels):
        raise ValueError(f"{len(says_yes)} answers to {len(labels)} questions: POPE joins the two in order")
    pairs = list(zip(says_yes, labels, strict=False))
    tp, fp, tn, fn = (pairs.count(cell) for cell in ((True, True), (True, False), (False, False), (False, True)))
    return Pope(tp, fp, tn, fn, _share(sum(says_yes), len(says_yes)))


def scienceqa_letter(text: str) -> str | None:
    """The letter of an answer: alone, in front as "B. ", or once as "The answer is B" and one more character."""
    if text and text in tuple(OPTIONS):
        return text
    if len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
        return text[0]
    found = THE_ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


def scienceqa_choice(text: str, options: int) -> int | None:
    """The option that an answer chooses, 0-based; None where it gives no letter, or one beyond the options."""
    letter = scienceqa_letter(text)
    return OPTIONS.index(letter) if letter is not None and letter in OPTIONS[:options] else None
