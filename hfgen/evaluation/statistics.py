"""Mean and covariance of features that arrive in batches."""

import math

import numpy as np
import torch

from hfgen.evaluation.checks import check_features

BUFFER_ROWS = 1024  # a product of fewer rows leaves most of the time to adding up D x D matrices


class FeatureStatistics:
    """Count, mean and covariance of features, in float64 and in memory for about three D x D matrices.

    Rows are taken in blocks of `BUFFER_ROWS`, each centred at its own mean, and blocks are joined by the formula of
    Chan, Golub and LeVeque (1979). So large offsets cost no digits, and the batches that the rows come in change not
    one bit of the result.

    Args:
        dim (`int`): D, the number of features of an image.
    """

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))  # sum of (x - mean)(x - mean)^T
        self._buffer = np.empty((BUFFER_ROWS + 1, dim))  # one row more: see _flush
        self._pending = 0

    def update(self, features: torch.Tensor) -> None:
        """Takes in a batch.

        Args:
            features (`torch.Tensor` of shape `(N, D)`): On any device.

        Raises:
            ValueError: For features of another size, NaN or infinite ones. Nothing is taken in then.
        """
        features = check_features(features, "features", least=0)
        self._check_dim(features.shape[1])
        while len(features):
            part, features = features[: BUFFER_ROWS - self._pending], features[BUFFER_ROWS - self._pending :]
            torch.from_numpy(self._buffer)[self._pending : self._pending + len(part)] = part
            self._pending += len(part)
            if self._pending == BUFFER_ROWS:
                self._flush()

    def merge(self, other: "FeatureStatistics") -> None:
        """Takes in all rows of another one, say of another process.

        Raises:
            ValueError: For features of another size.
        """
        self._check_dim(other.dim)
        self._flush()
        other._flush()
        step = self._join(other._count, other._mean)
        self._scatter += other._scatter
        self._scatter += np.outer(step, step)

    @property
    def dim(self) -> int:
        """D."""
        return len(self._mean)

    @property
    def count(self) -> int:
        """Number of rows."""
        return self._count + self._pending

    @property
    def mean(self) -> torch.Tensor:
        """The mean, of shape `(D,)`, float64."""
        self._check_count(1)
        self._flush()
        return torch.tensor(self._mean)

    @property
    def covariance(self) -> torch.Tensor:
        """The covariance, of shape `(D, D)`, float64, symmetric: the sum of squares over N - 1, as in `numpy.cov`."""
        self._check_count(2)
        self._flush()
        return torch.from_numpy(self._scatter / (self._count - 1))

    def state(self) -> dict[str, torch.Tensor]:
        """Returns a copy for other processes: `count`, `mean` and `scatter`, the sum of squares around the mean."""
        self._flush()
        arrays = {"count": np.array(self._count), "mean": self._mean, "scatter": self._scatter}
        return {name: torch.tensor(array) for name, array in arrays.items()}

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor]) -> "FeatureStatistics":
        """Makes statistics from what [`state`] returned.

        Raises:
            ValueError: If it is nothing of that kind.
        """
        if set(state) != {"count", "mean", "scatter"}:
            raise ValueError(f"state has {', '.join(sorted(state)) or 'nothing'}, but must have count, mean, scatter.")
        count, mean, scatter = state["count"], state["mean"], state["scatter"]
        if count.numel() != 1 or mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            shapes = ", ".join(str(tuple(value.shape)) for value in (count, mean, scatter))
            raise ValueError(f"count, mean and scatter have shapes {shapes}, but must have (), (D,) and (D, D).")
        statistics = cls(len(mean))
        statistics._count = int(count)
        statistics._mean += mean.cpu().double().numpy()
        statistics._scatter += scatter.cpu().double().numpy()
        return statistics

    def _flush(self) -> None:
        """Joins the rows of the buffer to the rest.

        The last row of the buffer is the difference of the means, so that one product makes the whole update; numpy
        sees that both factors are the same and computes half of it.
        """
        if self._pending:
            rows = self._buffer[: self._pending + 1]
            mean = rows[:-1].mean(0)
            rows[:-1] -= mean
            rows[-1] = self._join(self._pending, mean)
            self._pending = 0
            self._scatter += rows.T @ rows

    def _join(self, count: int, mean: np.ndarray) -> np.ndarray:
        """Counts rows of that mean in. Their distance, as one row whose square the scatter still has to take in."""
        total = self._count + count
        share = count / total if total else 0.0
        distance = mean - self._mean
        step = distance * math.sqrt(self._count * share)
        self._mean += distance * share
        self._count = total
        return step

    def _check_dim(self, dim: int) -> None:
        if dim != self.dim:
            raise ValueError(f"features has {dim} columns, but these statistics are of {self.dim}: use one extractor.")

    def _check_count(self, least: int) -> None:
        if self.count < least:
            raise ValueError(
                f"these statistics are of {self.count} images, but this needs at least {least}: use more images."
            )
