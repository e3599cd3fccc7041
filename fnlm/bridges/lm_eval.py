"""fnlm's models in EleutherAI's lm-evaluation-harness, which need not be installed for the scores.

Three functions give a causal model's numbers as the harness defines them, and `harness_model`
dresses a pipeline as a model of the harness, for `lm_eval.simple_evaluate(model, tasks=[...])`.

Source: lm-evaluation-harness 0.4, `lm_eval/models/huggingface.py`, equal to its model `hf`.
Deviations: special tokens in a text are ordinary text; a sampled text depends on the seed and on
the number of its request alone; a setting of generation that is not known is an error.
"""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import torch

from fnlm import random
from fnlm.generate import stream
from fnlm.pipeline import Pipeline

__all__ = ["generate_until", "harness_model", "loglikelihood", "loglikelihood_rolling"]

Row = tuple[list[int], list[int]]  # ids of a context and of what follows it
MOST_TOKENS = 256  # of a generated text, as the harness has it
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SETTINGS = ("temperature", "top_k", "top_p", "repetition_penalty")


def loglikelihood(
    pipeline: Pipeline, pairs: Sequence[tuple[str, str]], *, batch_size: int = 8
) -> list[tuple[float, bool]]:
    """Return log p(continuation | context) of each pair, and whether greedy decoding gives it.

    Args:
        pipeline: of a causal model.
        pairs: context and continuation. An empty context is the token that begins a text; spaces
            at the end of a context are counted to the continuation. What does not fit the model
            is cut off on the left.
        batch_size: rows that are computed together.

    Raises:
        ValueError: a context is empty, and the vocabulary has no token that begins a text.

    >>> from fnlm.pipeline import load
    >>> (score, greedy), = loglikelihood(load("tiny"), [("Once upon a", " time")])
    >>> round(score, 3), greedy
    (-3.218, False)
    """
    return _scores(pipeline, [_parted(pipeline, *pair) for pair in pairs], batch_size)


def loglikelihood_rolling(
    pipeline: Pipeline, texts: Sequence[str], *, batch_size: int = 8
) -> list[float]:
    """Return the log-probability of each whole text, the token that begins a text before it.

    A text that is longer than the model's positions is scored in windows that predict each of its
    tokens once, with at least one token of context.

    Args:
        pipeline: of a causal model.
        texts: any strings.
        batch_size: windows that are computed together.

    Raises:
        ValueError: the vocabulary has no token that begins a text.

    >>> from fnlm.pipeline import load
    >>> [round(score, 2) for score in loglikelihood_rolling(load("tiny"), ["The king said.", ""])]
    [-20.14, 0.0]
    """
    rows: list[Row] = []
    numbers: list[int] = []  # of the text that each row is of
    for number, text in enumerate(texts):
        ids = pipeline.encode(text) if text else []
        windows = list(_windows(pipeline.encode(""), ids, _limit(pipeline)))
        rows += windows
        numbers += [number] * len(windows)
    totals = [0.0] * len(texts)
    for number, (score, _) in zip(numbers, _scores(pipeline, rows, batch_size), strict=True):
        totals[number] += score
    return totals


def generate_until(
    pipeline: Pipeline,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> list[str]:
    """Return the text that follows each prompt, up to the first of its stop sequences.

    Args:
        pipeline: of a causal model.
        requests: prompt and settings: `until`, a stop sequence or several; `max_gen_toks`, by
            default 256; `do_sample` or a `temperature` above 0 for sampling; `top_k`, `top_p` and
            `repetition_penalty` of `fnlm.generate`. A prompt that leaves no room is cut off on the
            left.
        batch_size: rows that are computed together, if their settings are the same.
        seed: of sampling; a text depends on it and on the number of its request.

    Raises:
        ValueError: a setting is unknown, or `max_gen_toks` leaves no room for a prompt.

    >>> from fnlm.pipeline import load
    >>> generate_until(load("tiny"), [("The king", {"until": ["much"], "max_gen_toks": 9})])
    [' was so ']
    """
    groups: dict[str, list[tuple[int, list[int], Mapping[str, Any]]]] = {}
    for number, (prompt, given) in enumerate(requests):
        settings, ids = _settings(given), pipeline.encode(prompt)
        if (limit := _limit(pipeline)) is not None:
            if (room := limit - settings["most"]) < 1:
                raise ValueError(
                    f"max_gen_toks={settings['most']} leaves no room for a prompt among the "
                    f"{limit} positions of the model: ask for at most {limit - 1}"
                )
            ids = ids[-room:]
        alike = None if _takes_mask(pipeline) else len(ids)
        groups.setdefault(repr((settings, alike)), []).append((number, ids, settings))
    texts = [""] * len(requests)
    for group in groups.values():
        group.sort(key=lambda row: -len(row[1]))
        for start in range(0, len(group), batch_size):
            numbers, prompts, (settings, *_) = zip(*group[start : start + batch_size], strict=True)
            keys = random.fold_in(random.key(seed), torch.tensor(numbers))
            for number, text in zip(
                numbers, _texts(pipeline, prompts, settings, keys), strict=True
            ):
                texts[number] = text
    return texts


def harness_model(pipeline: Pipeline, *, batch_size: int = 8, seed: int = 0) -> Any:
    """Return a pipeline as a model of the harness, for `lm_eval.simple_evaluate(model, ...)`.

    Args:
        pipeline: of a causal model, from `fnlm.pipeline.load`.
        batch_size: rows that are computed together.
        seed: of sampling.

    Raises:
        ImportError: lm_eval is not installed (`pip install lm-eval`).

    >>> import lm_eval  # doctest: +SKIP
    >>> model = harness_model(pipeline.load("tiny"))  # doctest: +SKIP
    >>> results = lm_eval.simple_evaluate(model, tasks=["lambada_openai"])  # doctest: +SKIP
    """
    from lm_eval.api.model import LM

    class Model(LM):
        """A causal model of fnlm."""

        def loglikelihood(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return loglikelihood(pipeline, [r.args for r in requests], batch_size=batch_size)

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            texts = [request.args[0] for request in requests]
            return loglikelihood_rolling(pipeline, texts, batch_size=batch_size)

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            pairs = [request.args for request in requests]
            return generate_until(pipeline, pairs, batch_size=batch_size, seed=seed)

    return Model()


def _limit(pipeline: Pipeline) -> int | None:
    """Return the most tokens that the model reads at a time; None if there is no limit."""
    return getattr(pipeline.params["config"], "n_positions", None)


def _takes_mask(pipeline: Pipeline) -> bool:
    """Return whether rows of several lengths can be padded."""
    return "mask" in signature(pipeline.family.apply).parameters


def _parted(pipeline: Pipeline, context: str, continuation: str) -> Row:
    """Return the ids of a context and of what follows it, cut where the context's ids end."""
    if not context:
        begin = pipeline.encode("")
        ids = pipeline.encode(continuation) if continuation else []
        return (begin, ids) if ids[:1] != begin else (ids[:1], ids[1:])
    stripped = context.rstrip()
    if not stripped:  # nothing but spaces: there would be no context left
        return _parted(pipeline, "", context + continuation)
    before = pipeline.encode(stripped)
    return before, pipeline.encode(context + continuation)[len(before) :]


def _windows(begin: list[int], ids: list[int], limit: int | None) -> Iterator[Row]:
    """Yield context and continuation of the windows over a text: every id is predicted once."""
    size = len(ids) if limit is None else limit
    if ids:
        yield begin, ids[:size]
    for start in range(size, len(ids), size) if ids else ():
        stop = min(start + size, len(ids))
        yield ids[stop - size - 1 : start], ids[start:stop]


def _scores(pipeline: Pipeline, rows: Sequence[Row], batch_size: int) -> list[tuple[float, bool]]:
    """Return the log-probability of each continuation, and whether its tokens are most likely."""
    limit, results = _limit(pipeline), [(0.0, True)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = [[*rows[i][0], *rows[i][1]] for i in batch]
        inputs = [ids[-limit - 1 :][:-1] if limit else ids[:-1] for ids in inputs]
        longest = max(1, *map(len, inputs))
        # Padding on the right comes after all that is scored: no causal model sees it.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in inputs])
        with torch.no_grad():
            logits, _ = pipeline.apply(pipeline.params, ids)
        for i, row, row_logits in zip(batch, inputs, logits, strict=True):
            targets = torch.tensor(rows[i][1][-len(row) :], dtype=torch.int64)
            log_probs = row_logits[len(row) - len(targets) : len(row)]
            results[i] = _score(log_probs, targets)
    return results


def _score(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, bool]:
    """Return the score of targets [T] by logits [T, V], summed in float64."""
    log_probs = logits.log_softmax(-1)
    each = log_probs.gather(-1, targets[:, None])
    return float(each.double().sum()), bool((logits.argmax(-1) == targets).all())


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a request for `stream`, with `until` and the most new tokens."""
    rest = dict(given)
    until = rest.pop("until", None) or []
    limits = [rest.pop(name) for name in _LIMITS if name in rest]
    sampled = rest.pop("do_sample", None)
    settings = {name: rest.pop(name) for name in _SETTINGS if name in rest}
    if rest:
        known = ", ".join(("until", "do_sample", *_LIMITS, *_SETTINGS))
        raise ValueError(f"{', '.join(rest)}: no setting of generation here; known are {known}")
    temperature = float(settings.pop("temperature", 1.0 if sampled else 0.0))
    if sampled is False or not temperature:
        settings = {name: x for name, x in settings.items() if name == "repetition_penalty"}
    else:
        settings["temperature"] = temperature
    return {
        "until": [until] if isinstance(until, str) else list(until),
        "most": int(limits[0]) if limits else MOST_TOKENS,
        "sampled": "temperature" in settings,
        "settings": settings,
    }


def _texts(
    pipeline: Pipeline, prompts: Sequence[list[int]], settings: Mapping[str, Any], keys: Any
) -> list[str]:
    """Return the continuations of prompts of one setting, cut off at their stop sequences."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    lengths = torch.tensor([len(row) for row in prompts])
    mask = torch.arange(longest) >= longest - lengths[:, None]
    made: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    stops = settings["until"]
    tokens_of_steps = stream(
        pipeline.apply, pipeline.params, ids, settings["most"],
        mask=None if bool(mask.all()) else mask, eos=pipeline.eos,
        key=keys if settings["sampled"] else None, **settings["settings"],
    )  # fmt: skip
    for tokens in tokens_of_steps:
        for row, token in zip(made, tokens.tolist(), strict=True):
            row.append(token)
        texts = ["".join(pipeline.decode(row)) for row in made]
        if stops and all(any(stop in text for stop in stops if stop) for text in texts):
            break
    for stop in filter(None, stops):
        texts = [text.split(stop)[0] for text in texts]
    return texts
