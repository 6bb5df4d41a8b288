"""Text for the built-in corpus: pronounceable pseudo words, built from syllables."""

import numpy as np

# Letters that begin, carry and end a syllable; repeated entries are drawn more often.
ONSETS, VOWELS, CODAS = (
    text.split()
    for text in (
        "b c d d f g h h j k l l m m n n p qu r r s s t t v w y z th th sh ch st st tr pr br gr cl "
        "pl fl sp wh",
        "a a a a e e e e e e i i i i o o o o u u y ea ou ai ee io au",
        "n n n r r s s s t t d d l l m x k p f g ng nd nt st rd ct ll ss ck rn th lf mp v z",
    )
)


def pseudo_words(count: int, rng: np.random.Generator) -> list[str]:
    """Draws `count` words of one to four syllables, in sentences with capitals and full stops."""
    words, left = [], 0
    for _ in range(count):
        syllables = 1 + rng.binomial(3, 0.3)
        word = ""
        for number in range(syllables):
            # Some words begin with a vowel, and most syllables are open.
            if number or rng.random() < 0.8:
                word += ONSETS[rng.integers(len(ONSETS))]
            word += VOWELS[rng.integers(len(VOWELS))]
            if rng.random() < (0.75 if number + 1 == syllables else 0.2):
                word += CODAS[rng.integers(len(CODAS))]
        if left == 0 or rng.random() < 0.06:
            word = word.capitalize()
        if left == 0:
            left = int(rng.integers(6, 14))
        left -= 1
        if left == 0:
            word += "."
        elif rng.random() < 0.08:
            word += ","
        words.append(word)
    return words
