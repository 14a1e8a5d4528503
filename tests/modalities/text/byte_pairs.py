"""A byte-level BPE tokenizer made in the test, whose merges can reach across the border of prompt and answer."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_level(*words: str, special: tuple[str, ...] = (), eos: str | None = None, template: str | None = None):
    """A tokenizer of bytes with merges that make each of these words one token, and with special tokens."""
    inner = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {sign: i for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in words:
        signs = inner.pre_tokenize_str(word)[0][0]
        for end in range(2, len(signs) + 1):
            if signs[:end] not in vocabulary:
                vocabulary[signs[:end]] = len(vocabulary)
                merges.append((signs[: end - 1], signs[end - 1]))
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer, made.decoder = inner, decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer
