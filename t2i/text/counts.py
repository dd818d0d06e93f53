"""How long captions are to a text encoder."""

from transformers import PreTrainedTokenizerFast

from t2i.text.tokenizer import frame, read_words


def count_tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    """The tokens of each text with those that begin and end it: more than the encoder's `max_tokens` are cut off."""
    ends = sum(map(len, frame(tokenizer)))
    return [len(words.ids) + ends for words in read_words(tokenizer, texts)]
