"""A linear classifier from few pictures, chosen without a look at the test set. Chapter 20."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from repro.errors import DataError

# By powers of ten: standardised rows are divided by the root of their length, so that one grid suits every layer.
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
UNCHOSEN = 1.0  # with one picture of a class there is nothing to choose by: the grid's middle
FOLDS = 3
ROUNDS = 1000  # of L-BFGS, far more than it needs


@dataclass(frozen=True)
class Linear:
    """How a linear classifier did: mean over the classes of the share that is right, and what was chosen.

    `predictions` are int64 (N,). `strength` is scikit-learn's C, large for weak regularisation.
    """

    accuracy: float
    strength: float
    predictions: Tensor


def draw_pictures(labels: Tensor, n: int, draw: int, seed: int) -> Tensor:
    """Indices of `n` training pictures of each class, int64 (K · n,): the classes in turn.

    Each class is shuffled by a generator of its own, seeded by (seed, draw, class), and the first `n` are taken: the
    pictures of a small `n` are among those of a larger one, and draws are independent of each other. Raises
    `DataError` for a class with fewer pictures.
    """
    taken = []
    for label in labels.unique().tolist():
        own = (labels == label).nonzero().flatten().numpy()
        if len(own) < n:
            raise DataError(f"{n} pictures of each class are asked for; class {label} has {len(own)}")
        taken.append(np.random.default_rng((seed, draw, label)).permutation(own)[:n])
    return torch.from_numpy(np.concatenate(taken))


def classify(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, seed: int = 0) -> Linear:
    """Multinomial logistic regression with an L2 penalty, from rows (N, D) to the accuracy on test rows (M, D).

    Features are standardised by the training rows; the strength of the penalty is the one with the smallest log loss in
    cross-validation on them, over FOLDS folds or as many as the rarest class has pictures, and UNCHOSEN where
    that is one. The test rows serve for the accuracy and for nothing else.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=UNCHOSEN, max_iter=ROUNDS)
    folds = min(FOLDS, int(labels.unique(return_counts=True)[1].min()))
    if folds > 1:
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        model = GridSearchCV(model, {"C": STRENGTHS}, scoring="neg_log_loss", cv=splits)
    # One thread: the products are small, threads that wait for each other took forty times as long on a busy machine,
    # and the result is the same bits whatever the number of threads.
    with threadpool_limits(1):
        rows, test_rows = in_their_span(*standardised(train, test))
        predictions = torch.from_numpy(model.fit(rows, labels.numpy()).predict(test_rows)).long()
    strength = float(model.best_params_["C"]) if folds > 1 else UNCHOSEN
    return Linear(mean_accuracy(predictions, test_labels), strength, predictions)


def mean_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The mean over the classes of the share of a class's pictures that are right, so that chance is 1 / K."""
    right = (predictions == labels).double()
    return torch.stack([right[labels == label].mean() for label in labels.unique()]).mean().item()


def standardised(train: Tensor, test: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both less the mean of the training rows, divided by their deviation and by √D; a constant feature gives zeros."""
    mean, std = train.double().mean(0), train.double().std(0, correction=0)
    # A feature whose deviation is rounding, a unit that never fires say, tells nothing.
    dead = std <= 1e-6 * train.double().abs().amax(0)
    scale = torch.where(dead, 0.0, 1 / torch.where(dead, 1.0, std)) / train.shape[1] ** 0.5
    return ((train.double() - mean) * scale).numpy(), ((test.double() - mean) * scale).numpy()


def in_their_span(
    rows: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in coordinates of the space that `rows` (N, D) span, at most N of them.

    Nothing is lost: with an L2 penalty the weights of a linear classifier lie in that space, and lengths and angles in
    it stay. The work then no longer depends on how many features a layer gives.
    """
    if rows.shape[0] >= rows.shape[1]:
        return rows, others
    basis, _ = np.linalg.qr(rows.T)  # (D, N)
    return rows @ basis, others @ basis
