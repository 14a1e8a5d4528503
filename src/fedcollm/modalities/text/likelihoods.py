"""Log-likelihoods of answers, for which a prompt with several answers is read only once.

The answers follow their prompt one after the other without attending to each other.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedcollm.modalities.text.encoding import Encoded
from fedcollm.modalities.text.forward import Branched, Tokens, branch, pad_left, reads_branches

#: Number of rows of logits that are converted to float32 at once.
_ROWS_AT_ONCE = 64

#: Returns the logits [P, V] of a model, given inputs, the rows that are needed, and what each column attends to.
Logits = Callable[[nn.Module, dict[str, Tensor], Tensor, Tensor | None], Tensor]


class _Part(NamedTuple):
    """A prompt with answers of one example, which are read together.

    Attributes:
        example: index of the example.
        choices: indices of the answers among those of the example.
        prompt: the tokens of the prompt.
        answers: the tokens of each answer, with those that end it.
        ends: how many tokens end each answer.
    """

    example: int
    choices: list[int]
    prompt: Tokens
    answers: list[Tokens]
    ends: list[int]


def likelihoods(
    model: nn.Module, examples: Sequence[Sequence[Encoded]], logits: Logits, padding: int
) -> list[tuple[Tensor, Tensor]]:
    """Return for each example [C] log-likelihoods of its answers, and [C] whether greedy decoding gives them.

    A log-likelihood includes the tokens that end an answer. As in lm-evaluation-harness, greedy decoding need not give
    these. A prompt is read once for all of its answers if the model's attention allows it.

    Args:
        model: a causal language model.
        examples: the answers of each example.
        logits: returns rows of logits.
        padding: token for padding.
    """
    longest = max(max(len(one.prompt) for one in some) + sum(map(_length, some)) for some in examples)
    parts = _parts(examples, reads_branches(model, longest))
    values = [torch.empty(len(some)) for some in examples]
    greedy = [torch.empty(len(some), dtype=torch.bool) for some in examples]
    for start in range(0, len(parts), len(examples)):
        some = parts[start : start + len(examples)]
        for part, (nats, likeliest) in zip(some, _read(model, some, logits, padding), strict=True):
            values[part.example][part.choices], greedy[part.example][part.choices] = nats, likeliest
    return list(zip(values, greedy, strict=True))


def _length(one: Encoded) -> int:
    return len(one.answer) + len(one.end)


def _parts(examples: Sequence[Sequence[Encoded]], shared: bool) -> list[_Part]:
    """Return the answers of each example by prompt, or one by one if a prompt can't be shared."""
    parts: list[_Part] = []
    for index, some in enumerate(examples):
        by_prompt: dict[Any, _Part] = {}
        for choice, one in enumerate(some):
            part = by_prompt.setdefault(one.prompt if shared else choice, _Part(index, [], one.prompt, [], []))
            part.choices.append(choice)
            part.answers.append(one.answer + one.end)
            part.ends.append(len(one.end))
        parts += by_prompt.values()
    return parts


def _read(model: nn.Module, parts: Sequence[_Part], logits_of: Logits, padding: int) -> list[tuple[Tensor, Tensor]]:
    """Return the same as `likelihoods` for each part, on the CPU, from one forward pass."""
    branched: list[Branched] = [(part.prompt, part.answers) for part in parts]
    inputs = pad_left([prompt + sum((a[:-1] for a in answers), ()) for prompt, answers in branched], padding)
    seen = None
    if any(len(answers) > 1 and max(map(len, answers)) > 1 for _, answers in branched):
        seen, inputs["position_ids"] = branch(inputs, branched)
    read = [1 + sum(len(answer) - 1 for answer in answers) for _, answers in branched]
    logits = logits_of(model, inputs, torch.arange(-max(read), 0) >= -torch.tensor(read)[:, None], seen)  # [P, V]
    rows, tokens = _places(branched)
    normal = torch.cat([some.float().logsumexp(-1) for some in torch.split(logits, _ROWS_AT_ONCE)])  # [P]
    chosen, at = logits[rows, tokens].float(), torch.tensor(rows, device=logits.device)
    nats, likeliest = (chosen - normal[at]).cpu(), (chosen == logits.amax(-1)[at].float()).cpu()
    answers = [(len(answer), end) for part in parts for answer, end in zip(part.answers, part.ends, strict=True)]
    lengths = torch.tensor([length for length, _ in answers])
    ends = [[False] * (length - end) + [True] * end for length, end in answers]
    likeliest |= torch.tensor([is_end for answer in ends for is_end in answer])
    sums = torch.segment_reduce(nats, "sum", lengths=lengths)
    all_likeliest = torch.segment_reduce(likeliest.float(), "min", lengths=lengths).bool()
    counts = [len(part.answers) for part in parts]
    return list(zip(torch.split(sums, counts), torch.split(all_likeliest, counts), strict=True))


def _places(branched: Sequence[Branched]) -> tuple[list[int], list[int]]:
    """Return the row of logits that predicts each token of the answers, and the tokens."""
    rows: list[int] = []
    tokens: list[int] = []
    first = 0  # row of the last token of the prompt
    for _, answers in branched:
        row = first
        for answer in answers:
            rows += [first, *range(row + 1, row + len(answer))]
            row += len(answer) - 1
            tokens += answer
        first = row + 1
    return rows, tokens
