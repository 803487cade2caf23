"""Chinese text to the tokens that BLEU and ROUGE count: characters, or the words of jieba."""

import tempfile
import warnings
from collections.abc import Callable
from functools import cache


def characters(text: str) -> list[str]:
    """Every character but white space: Chinese characters, Latin letters, digits and punctuation alike.

    >>> characters("血压 120。")
    ['血', '压', '1', '2', '0', '。']
    """
    return [character for character in text if not character.isspace()]


def words(text: str) -> list[str]:
    """The words of jieba's default dictionary and mode, without white space.

    >>> words("您好， 肢体麻木")
    ['您好', '，', '肢体', '麻木']
    """
    return [word for word in _jieba().lcut(text) if not word.isspace()]


SEGMENTERS: dict[str, Callable[[str], list[str]]] = {"chars": characters, "words": words}
"""By the names that stand in a metric's name and signature."""


@cache
def _jieba():
    """jieba's tokenizer with its dictionary loaded, in silence.

    Its own cache is passed by: it is a marshalled file under a fixed name in the shared temporary folder, where anybody
    could put one, and it saves half a second.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports the outdated pkg_resources
        import jieba
    jieba.setLogLevel("ERROR")
    tokenizer = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer
