"""Find labels that are probably wrong, from how likely a model that has not seen them thinks each class is.

The model is by default a logistic regression on features that need no network (`features.py`), in cross-validation:
each example is judged by a model of the other ones. The small model of a finished run can take its place.

Which labels are wrong is then decided by one of `RULES`. cleanlab's confident learning (arXiv 1911.00068) flags about
as many labels as the model gets wrong, and a model that learned from a few hundred examples gets many right ones
wrong: with 5 % of the labels flipped, only 15 % of what it flags is a flip (`benchmarks/label_errors.py`). So the
default is a noise model: a label is drawn from the model's probabilities, sharpened by a temperature, or, with
probability ρ, from all classes alike. ρ and the temperature are those under which the labels are likeliest, and a label
is flagged if it is then more likely to be noise than not.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedcollm.data.audit.extra import audit_library
from fedcollm.data.audit.findings import Finding, Fix, Subject
from fedcollm.data.audit.texts import folded

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

#: Folds of the cross-validation, and the inverse of the regularization of the logistic regression.
_FOLDS, _STRENGTH = 10, 10.0

#: Classes with fewer examples are rare: a model of the other examples can't know them.
FEWEST = 3

#: Fewest examples from which labels are judged at all.
FEWEST_EXAMPLES = 20

#: Inverse temperatures and shares of noise that are tried.
_SHARPNESS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0, 6.0, 8.0)
_SHARES: Floats = np.linspace(0, 0.9, 46)

_SMALLEST = 1e-6  # probability


class Suspect(NamedTuple):
    """A label that is probably wrong: position of its example, how sure that is, and the class that is likelier."""

    position: int
    score: float
    better: int


def out_of_fold(rows: Floats, labels: Codes, classes: int, seed: int = 0) -> Floats:
    """Return how likely each class is for each example, by a logistic regression on the examples of the other folds.

    Args:
        rows: [N, d] features.
        labels: [N] classes, from 0.
        classes: C.
        seed: of the division into folds, which have equal shares of each class as far as possible.

    Returns:
        [N, C] probabilities; 0 for a class that no example of the other folds has.
    """
    from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]

    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % _FOLDS
    found: Floats = np.zeros((len(labels), classes))
    for fold in range(_FOLDS):
        train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(held) and len(set(labels[train].tolist())) > 1:
            model: Any = LogisticRegression(C=_STRENGTH, max_iter=300)
            with warnings.catch_warnings():  # classes of few examples are no reason to think of a regression
                warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
                model.fit(rows[train], labels[train])
            found[np.ix_(held, model.classes_)] = model.predict_proba(rows[held])
        elif len(held):
            found[held, labels[train][0]] = 1.0
    return found


def noise_share(labels: Codes, probabilities: Floats) -> tuple[float, Floats]:
    """Return the share of labels that are noise, and for each label how likely it is noise, under the noise model.

    Args:
        labels: [N] classes, from 0.
        probabilities: [N, C] how likely each class is, by a model that has not seen the label.
    """
    logs, anything = np.log(np.clip(probabilities, _SMALLEST, 1)), 1 / probabilities.shape[1]
    best = (-np.inf, 0.0, np.zeros(len(labels)))
    for sharpness in _SHARPNESS:
        scaled = logs * sharpness
        scaled = np.exp(scaled - scaled.max(1, keepdims=True))
        own = (scaled / scaled.sum(1, keepdims=True))[np.arange(len(labels)), labels]
        likely = np.log((1 - _SHARES) * own[:, None] + _SHARES * anything).sum(0)
        at = int(likely.argmax())
        if likely[at] > best[0]:
            share = float(_SHARES[at])
            noise = share * anything / ((1 - share) * own + share * anything)
            best = (float(likely[at]), share, noise)
    return best[1], best[2]


def with_rare(labels: Codes, probabilities: Floats) -> Floats:
    """Return probabilities [N, C] that leave room for classes with fewer than `FEWEST` examples.

    A rare class is as likely as examples of rare classes are frequent, more where the model is unsure of all others.
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    rare = (counts > 0) & (counts < FEWEST)
    share = float(rare[labels].mean())
    if not share:
        return probabilities
    unsure = 1 - probabilities[:, ~rare].max(1)
    unknown = np.clip(share * unsure / max(float(unsure.mean()), _SMALLEST), 0, 0.9)[:, None]
    others = np.where(rare, 0.0, probabilities)
    others = others / np.maximum(others.sum(1, keepdims=True), _SMALLEST)
    return (1 - unknown) * others + unknown * rare / rare.sum()


def _by_noise_model(labels: Codes, probabilities: Floats) -> Floats:
    """Return [N], how likely each label is noise, from 0 to 1."""
    return noise_share(labels, with_rare(labels, probabilities))[1]


def _by_confident_learning(labels: Codes, probabilities: Floats) -> Floats:
    """Return [N], 1 - the model's probability of a label that cleanlab flags by default, and 0 for others."""
    filtering: Any = audit_library("cleanlab.filter", "cleanlab")
    present = np.unique(labels)  # cleanlab wants classes without gaps
    codes, some = np.searchsorted(present, labels), probabilities[:, present]
    some = (some + _SMALLEST) / (some + _SMALLEST).sum(1, keepdims=True)
    flagged = filtering.find_label_issues(codes, some, n_jobs=1)
    return np.where(flagged, 1 - some[np.arange(len(codes)), codes] / 2, 0.0)


#: Name of a rule to what says how likely each label is wrong; above 1/2 it is flagged.
RULES: Mapping[str, Callable[[Codes, Floats], Floats]] = {
    "noise_model": _by_noise_model,
    "confident_learning": _by_confident_learning,
}


def suspects(labels: Codes, probabilities: Floats, rule: str = "noise_model") -> list[Suspect]:
    """Return the labels that are probably wrong, the surest first; none if every class is rare (`FEWEST`).

    Args:
        labels: [N] classes, from 0.
        probabilities: [N, C] how likely each class is, by a model that has not seen the label.
        rule: a key of `RULES`.

    Raises:
        UserError: a library is missing.
    """
    if np.bincount(labels).max(initial=0) < FEWEST:
        return []
    return flagged(labels, probabilities, RULES[rule](labels, probabilities))


def flagged(labels: Codes, probabilities: Floats, wrong: Floats) -> list[Suspect]:
    """Return the labels that are wrong with more than even odds and for which another class is likelier, surest first.

    Args:
        labels: [N] classes, from 0.
        probabilities: [N, C] how likely each class is.
        wrong: [N] how likely each label is wrong.
    """
    better = probabilities.argmax(1)
    doubted = np.flatnonzero((wrong > 0.5) & (better != labels))
    found = [Suspect(int(i), float(wrong[i]), int(better[i])) for i in doubted]
    return sorted(found, key=lambda one: (-one.score, one.position))


def label_errors(subject: Subject) -> Iterator[Finding]:
    """Yield labels that are probably wrong; another spelling of the likelier class is not, and `spelling` finds it."""
    known = [i for i, record in enumerate(subject.records) if record.label and not record.fault]
    judged = _judged(subject, known)
    if judged is None:
        return
    codes, probabilities, classes = judged
    for one in suspects(codes, probabilities, subject.rule):
        i = known[one.position]
        label, better = str(subject.records[i].label), classes[one.better]
        if folded(label) == folded(better):
            continue
        detail = f"{label!r}; the model says {better!r} ({100 * probabilities[one.position, one.better]:.0f} %)"
        yield Finding("label", i, detail, one.score, Fix("set", subject.answer, better))


def _judged(subject: Subject, known: list[int]) -> tuple[Codes, Floats, list[str]] | None:
    """Return the labels as codes, how likely each class is, and the classes; None if labels can't be judged."""
    if subject.free or len(known) < FEWEST_EXAMPLES:
        return None
    classes = list(subject.classes) or sorted({str(subject.records[i].label) for i in known})
    codes = np.array([classes.index(str(subject.records[i].label)) for i in known], dtype=np.int64)
    if len(set(codes.tolist())) < 2:
        return None
    if subject.probabilities is not None:
        return codes, subject.probabilities[known], classes
    from fedcollm.data.audit.features import features

    return codes, out_of_fold(features(subject, known), codes, len(classes)), classes
