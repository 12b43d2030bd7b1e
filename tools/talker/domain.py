"""What the talker can say: its words, the sentences it knows, and which sentences are kept from its training."""

import random
import re
import zlib
from dataclasses import dataclass

NUMBERS = "one two three four five six seven eight nine".split()
COLORS = "red green blue black".split()
ANIMALS = "cats dogs birds".split()
OTHERS = (
    "hello my little robot friend good morning can you speak sing count hear me yes no i see have the and are very "
    "well thank"
).split()
WORDS = NUMBERS + COLORS + ANIMALS + OTHERS

GREETINGS = ["hello", "good morning", "thank you", "very good"]
NAMES = ["my friend", "little robot", "my little robot", "my little friend", "robot", "friend"]
VERBS = ["speak", "sing", "count", "hear me", "hear you", "see you", "speak well", "sing well", "count very well"]

DEMO = "[S1] Hello, my little robot. Can you sing? [S2] No, I can count very well."
ALWAYS_LEARNT = ("Hello, little robot.", "Can you speak?", "Yes, my friend.", "I can speak very well.")

PHRASES = "(Hello|Good morning|Thank you|Very good|Yes|No), |Can you "  # how sentences begin that open or answer

SPEAKERS = {"[S1]": "rms", "[S2]": "slt"}  # the tag and flite's voice
HELD_OUT_SHARE = 10  # one in so many sentences of the grammar


@dataclass(frozen=True)
class Script:
    """Sentences in order, each with its speaker's tag."""

    turns: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The script as the engine reads it: a tag wherever the speaker changes."""
        parts, last = [], None
        for tag, sentence in self.turns:
            parts += [sentence] if tag == last else [tag, sentence]
            last = tag
        return " ".join(parts)


def words_of(text: str) -> list[str]:
    """The words of a script in lower case, without tags and punctuation."""
    return re.findall(r"[a-z]+", re.sub(r"\[S\d\]", " ", text).lower())


def is_held_out(sentence: str) -> bool:
    """Whether a sentence is kept from training, told from its words alone so that no list need be kept."""
    if sentence in ALWAYS_LEARNT:
        return False
    return zlib.crc32(" ".join(words_of(sentence)).encode()) % HELD_OUT_SHARE == 0


def grammar_sentence(rng: random.Random) -> str:
    """A sentence that makes sense, such as "I see two black cats."."""
    number, color, animals = (lambda: rng.choice(NUMBERS[1:])), (lambda: rng.choice(COLORS)), rng.choice(ANIMALS)
    group = f"{number()} {color()} {animals}"
    owned = rng.choice(["the", f"the {color()}", "my", f"my {number()}"])
    the_animals = f"{owned} {animals}"
    verb = rng.choice(VERBS)
    sentence = rng.choice(
        [
            f"{rng.choice(GREETINGS)}, {rng.choice(NAMES)}.",
            f"{rng.choice(['i', 'you'])} {rng.choice(['see', 'have', 'hear'])} {group}.",
            f"{rng.choice(['i', 'you'])} can see {group}.",
            f"i {rng.choice(['see', 'have', 'hear'])} {number()} {animals} and {number()} {rng.choice(ANIMALS)}.",
            f"can {rng.choice(['you', the_animals])} {verb}?",
            f"{rng.choice(['yes', 'no'])}, {rng.choice(['i', 'you'])} can {verb}.",
            f"{rng.choice(['yes', 'no'])}, {rng.choice(NAMES)}.",
            f"{rng.choice(['i', 'you', 'my little robot', the_animals])} can {verb}.",
            f"{the_animals} are {rng.choice([*COLORS, 'little', 'very little', 'very good'])}.",
            " ".join(rng.choice(NUMBERS) for _ in range(rng.randint(3, 5))) + ".",
        ]
    )
    return _as_sentence(sentence)


def random_sentence(rng: random.Random) -> str:
    """Words in no order, so that the model learns how words sound and not which sentences there are."""
    return _as_sentence(" ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 6))) + rng.choice("...?"))


def _as_sentence(text: str) -> str:
    text = re.sub(r"\bi\b", "I", text)
    return text[0].upper() + text[1:]


def distinct(make, rng: random.Random, count: int, keep) -> list[str]:
    """`count` different sentences of `make` for which `keep` holds."""
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = make(rng)
        if keep(sentence):
            found[sentence] = None
    return list(found)


def training_sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences to learn from: half of the grammar, half random."""
    rng = random.Random(seed)

    def allowed(sentence):
        return not is_held_out(sentence)

    grammar = distinct(grammar_sentence, rng, count // 2, allowed)
    loose = distinct(random_sentence, rng, count - count // 2, allowed)
    return list(dict.fromkeys([*ALWAYS_LEARNT, *grammar, *loose]))


def training_scripts(sentences: list[str], count: int, seed: int = 1) -> list[Script]:
    """Scripts of one to four sentences, in one or two voices, either of which may begin."""
    rng = random.Random(seed)
    return [_script(rng, sentences, rng.choices([1, 2, 3, 4], [50, 30, 12, 8])[0]) for _ in range(count)]


def talking_scripts(sentences: list[str], count: int, seed: int = 4) -> list[Script]:
    """As `training_scripts`, with more sentences each, and every third of them one that opens or answers, of which
    there are so few that the others crowd them out."""
    rng = random.Random(seed)
    phrases = [sentence for sentence in sentences if re.match(PHRASES, sentence)]
    pool = [rng.choice(phrases) if rng.random() < 1 / 3 else rng.choice(sentences) for _ in range(4 * count)]
    return [_script(rng, pool, rng.choices([1, 2, 3, 4], [30, 35, 20, 15])[0]) for _ in range(count)]


def held_out_scripts(count: int, length: int | None = None, seed: int = 2) -> list[Script]:
    """Scripts for the evaluation; each sentence is one that training has left out, whichever the voice, and comes once.

    Args:
        length: sentences of each script, by both speakers in turn. Default: three in five have one, two have two.
    """
    rng = random.Random(seed)
    sentences = iter(distinct(grammar_sentence, rng, (length or 2) * count, is_held_out))
    scripts = []
    for index in range(count):
        tags = list(SPEAKERS)[:: 1 if index % 2 == 0 else -1]
        turns = length or (2 if index % 5 >= 3 else 1)
        scripts.append(Script(tuple((tags[turn % 2], next(sentences)) for turn in range(turns))))
    return scripts


def _script(rng: random.Random, sentences: list[str], length: int) -> Script:
    tags = list(SPEAKERS)
    speaker = rng.choice(tags)
    turns = []
    for _ in range(length):
        turns.append((speaker, rng.choice(sentences)))
        if rng.random() < 0.6:
            speaker = tags[1 - tags.index(speaker)]
    return Script(tuple(turns))
