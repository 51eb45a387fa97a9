"""Small tokenizers of each family, trained on the spot with the real library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tests.standin.weights import tokenizer_file

# The library's stubs leave half of it untyped.
_decoders: Any = decoders
_models: Any = models
_normalizers: Any = normalizers
_pre_tokenizers: Any = pre_tokenizers
_trainers: Any = trainers

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Isn't it nice? I've seen it, he's here; we're done!",
    "How do I count to nine in French?  un, deux, trois, quatre, cinq, six, sept, huit, neuf.",
    "def f(x):\n    return x + 1\n\nprint(f(41))  # forty-two\n",
    "我喜欢学习语言模型。今天天气很好。日本語も少し話せます。",
    "naïve café façade, Ünïcödé, «quoted» „text“ — dash",
    "User: hello\nAssistant: hi there! STOP END 123 4567 89",
)
SPECIAL = ["<unk>", "<s>", "</s>"]


class Adapter:
    """A tokenizer of the library as the serving code sees those of transformers; counts the tokens it decodes."""

    def __init__(self, tokenizer: Any, clean_up: bool = False) -> None:
        self.tokenizer = tokenizer
        self.decoded = 0
        self._clean_up = clean_up

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool) -> str:
        self.decoded += len(ids)
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return cleaned_up(text) if self._clean_up else text

    def encode(self, text: str, /, *, add_special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def convert_ids_to_tokens(self, token_id: int, /) -> str | None:
        return self.tokenizer.id_to_token(token_id)

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size()


def cleaned_up(text: str) -> str:
    """What transformers does to decoded text where `clean_up_tokenization_spaces` is set, as for Llama 3."""
    for found in (" .", " ?", " !", " ,"):
        text = text.replace(found, found[1:])
    text = text.replace(" ' ", "'")
    for found in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(found, found[1:])
    return text


@cache
def _byte_level() -> Any:
    tokenizer: Any = tokenizers.Tokenizer(_models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = _decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        _trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=SPECIAL,
            initial_alphabet=_pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


@cache
def _unigram() -> list[tuple[str, float]]:
    tokenizer: Any = tokenizers.Tokenizer(_models.Unigram())
    tokenizer.pre_tokenizer = _pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS[:3], _trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    )
    known = [(token, score) for token, score in json.loads(tokenizer.to_str())["model"]["vocab"] if token != "\n"]
    return [*known, *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]


def _unigram_tokenizer() -> Any:
    tokenizer: Any = tokenizers.Tokenizer(_models.Unigram(_unigram(), 0, True))
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


@cache
def _sentencepiece() -> Any:
    tokenizer = _unigram_tokenizer()
    tokenizer.normalizer = _normalizers.Sequence([_normalizers.Prepend("▁"), _normalizers.Replace(" ", "▁")])
    tokenizer.decoder = _decoders.Sequence(
        [_decoders.Replace("▁", " "), _decoders.ByteFallback(), _decoders.Fuse(), _decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@cache
def _metaspace() -> Any:
    tokenizer = _unigram_tokenizer()
    tokenizer.pre_tokenizer = _pre_tokenizers.Metaspace()
    tokenizer.decoder = _decoders.Sequence([_decoders.ByteFallback(), _decoders.Metaspace()])
    return tokenizer


@cache
def _wordpiece() -> Any:
    tokenizer: Any = tokenizers.Tokenizer(_models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = _pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = _decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.train_from_iterator(
        CORPUS, _trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    )
    return tokenizer


def byte_level() -> Adapter:
    """GPT-2 and Llama 3: a BPE over bytes."""
    return Adapter(_byte_level())


def byte_level_cleaned() -> Adapter:
    return Adapter(_byte_level(), clean_up=True)


def sentencepiece() -> Adapter:
    """Llama 2: `▁` for a space and one before the text, bytes for what the vocabulary lacks."""
    return Adapter(_sentencepiece())


def metaspace() -> Adapter:
    """T5 and its like: the first token alone loses its `▁`."""
    return Adapter(_metaspace())


def wordpiece() -> Adapter:
    """BERT: a space before each token that is no `##` continuation, none before punctuation."""
    return Adapter(_wordpiece())


def wordpiece_cleaned() -> Adapter:
    return Adapter(_wordpiece(), clean_up=True)


def standin() -> Adapter:
    """The tokenizer of the tiny Llama."""
    return Adapter(tokenizers.Tokenizer.from_str(json.dumps(tokenizer_file())))


FAMILIES: tuple[Callable[[], Adapter], ...] = (
    byte_level,
    byte_level_cleaned,
    sentencepiece,
    metaspace,
    wordpiece,
    wordpiece_cleaned,
    standin,
)
