"""The optimizers and the feedback rules once more: NumPy, float64, from the formulas in the literature alone.

v is the dual, w the weights, J(w) = lambda * penalty(w) + ||w||^2 / (2 delta): v starts as a subgradient of J at w,
each step moves v, and w = prox(delta v). Loops and full sorts where they read best; nothing here is fast.
"""

import numpy as np
import torch
from torch import nn


def group_indices(shape: tuple[int, ...], granularity: str) -> list:
    rows, columns = range(shape[0]), range(shape[1])
    if granularity == "out_channel":
        return [np.s_[row] for row in rows]
    if granularity == "in_channel":
        return [np.s_[:, column] for column in columns]
    return [np.s_[row, column] for row in rows for column in columns]


def prox(z: np.ndarray, threshold: float, granularity: str | None = None) -> np.ndarray:
    if granularity is None:
        return np.sign(z) * np.maximum(np.abs(z) - threshold, 0)
    out = np.zeros_like(z)
    for index in group_indices(z.shape, granularity):
        norm = np.sqrt(np.sum(z[index] ** 2))
        if norm > 0:
            out[index] = z[index] * max(1 - threshold * np.sqrt(z[index].size) / norm, 0)
    return out


def first_dual(weight: np.ndarray, lambda_: float, delta: float, granularity: str | None = None) -> np.ndarray:
    if granularity is None:
        return weight / delta + lambda_ * np.sign(weight)
    dual = weight / delta
    for index in group_indices(weight.shape, granularity):
        norm = np.sqrt(np.sum(weight[index] ** 2))
        if norm > 0:
            dual[index] += lambda_ * np.sqrt(weight[index].size) * weight[index] / norm
    return dual


class Sgd:
    """The direction of SGD; weight decay belongs to the gradient, as in torch.optim.SGD."""

    def __init__(self, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, maximize=False):
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self.weight_decay, self.sign, self.buffer = weight_decay, -1.0 if maximize else 1.0, None

    def __call__(self, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        gradient = self.sign * gradient + self.weight_decay * weight
        if self.buffer is None:
            self.buffer = gradient
        else:
            self.buffer = self.momentum * self.buffer + (1 - self.dampening) * gradient
        return gradient + self.momentum * self.buffer if self.nesterov else self.buffer


class Adam:
    """The direction of Adam, with decoupled weight decay."""

    def __init__(self, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, maximize=False):
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.sign, self.steps, self.first, self.second = -1.0 if maximize else 1.0, 0, 0.0, 0.0

    def __call__(self, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        gradient = self.sign * gradient
        self.steps += 1
        self.first = self.betas[0] * self.first + (1 - self.betas[0]) * gradient
        self.second = self.betas[1] * self.second + (1 - self.betas[1]) * gradient**2
        mean = self.first / (1 - self.betas[0] ** self.steps)
        square = self.second / (1 - self.betas[1] ** self.steps)
        return mean / (np.sqrt(square) + self.eps) + self.weight_decay * weight


class Bregman:
    """LinBreg with the direction of SGD, AdaBreg with that of Adam; the dual is made at the first step."""

    def __init__(self, weight: np.ndarray, direction, lr: float, delta=1.0, granularity=None, is_hard=False):
        self.weight, self.direction, self.lr = weight.copy(), direction, lr
        self.delta, self.granularity, self.is_hard, self.dual = delta, granularity, is_hard, None

    def step(self, gradient: np.ndarray, lambda_: float) -> None:
        if self.dual is None:
            hidden = 0 if self.is_hard else lambda_
            self.dual = first_dual(self.weight, hidden, self.delta, self.granularity)
        self.dual = self.dual - self.lr * self.direction(self.weight, gradient)
        self.apply_prox(lambda_)

    def apply_prox(self, lambda_: float) -> None:
        if self.is_hard:
            self.weight = self.delta * self.dual * (np.abs(self.dual) > lambda_)
            return
        self.weight = prox(self.delta * self.dual, self.delta * lambda_, self.granularity)


class Prox:
    """Proximal gradient descent: no dual."""

    def __init__(self, weight: np.ndarray, lr: float, granularity=None):
        self.weight, self.lr, self.granularity = weight.copy(), lr, granularity

    def step(self, gradient: np.ndarray, lambda_: float) -> None:
        self.weight = prox(self.weight - self.lr * gradient, self.lr * lambda_, self.granularity)


class Plain:
    """SGD or Adam with learning rate ``lr * delta``: what is left of the others without a penalty."""

    def __init__(self, weight: np.ndarray, direction, lr: float, delta=1.0):
        self.weight, self.direction, self.lr = weight.copy(), direction, lr * delta

    def step(self, gradient: np.ndarray, lambda_: float) -> None:
        self.weight = self.weight - self.lr * self.direction(self.weight, gradient)


def moved(lambda_: float, gain: float, gap: float) -> float:
    """The paper's rule."""
    if gap > 0:
        return lambda_ * (1 + gain * abs(gap))
    return lambda_ / (1 + gain * abs(gap))


def decaying(gaps: list[float], lambda_: float, alpha: float, gamma: float) -> list[float]:
    """The authors' newest gain: it decays with each change of the gap's sign after the first."""
    path, crossings = [], 0
    for index, gap in enumerate(gaps):
        if index and np.sign(gap) * np.sign(gaps[index - 1]) < 0:
            crossings += 1
        lambda_ = moved(lambda_, alpha * gamma ** max(crossings - 1, 0), gap)
        path.append(lambda_)
    return path


def feedback(
    gaps, lambda_, rates, alpha=1.0, gamma=0.95, min_gain=0.05, deadband=0.001, drift_gain=0.05
) -> list[float]:
    """The loop with a drift, a dead band, a floor under the gain, and a new start where the rate has changed."""
    path, crossings, side, drift, known = [], 0, 0.0, 0.0, rates[0]
    for gap, rate in zip(gaps, rates, strict=True):
        if rate <= known / 2 or rate >= 2 * known:
            crossings, known = 0, rate
        crossed = abs(gap) > deadband and np.sign(gap) == -side
        if abs(gap) > deadband:
            side = np.sign(gap)
        crossings += crossed
        gain = max(min_gain, alpha * gamma ** max(crossings - 1, 0))
        drift = 0.0 if crossed else drift + drift_gain * gain * gap
        lambda_ = moved(lambda_, gain, gap) * np.exp(drift)
        path.append(lambda_)
    return path


def ramp(share: float, start: float, end: float, first: float, last: float) -> float:
    """The target after a share of the run, on its way from ``first`` to ``last`` between two shares."""
    progress = min(max((share - start) / (end - start), 0.0), 1.0)
    return last + (first - last) * (1 - progress) ** 3


def cutoff(values: np.ndarray, kept: int) -> float:
    """The (kept + 1)-th largest, 0 where there are not so many."""
    ordered = np.sort(values)[::-1]
    return ordered[kept] if kept < len(ordered) else ordered.dtype.type(0)


def nearest(values: np.ndarray, kept: int, lambda_: float) -> float:
    """Of the lambdas that keep so many, from the (kept + 1)-th largest to just below the kept-th, the nearest."""
    low, high = cutoff(values, kept), cutoff(values, kept - 1)
    return min(max(lambda_, low), max(low, high * (1 - 2**-20)))


def surviving_groups(norms: np.ndarray, sizes: np.ndarray, kept: int) -> np.ndarray:
    """Groups from the largest norm down, until the next would make it more weights than are kept."""
    order = np.argsort(-norms, kind="stable")
    alive = np.zeros(len(norms), dtype=bool)
    alive[order] = np.cumsum(sizes[order]) <= kept
    return alive


class Problem:
    """Least squares that couples all weights, plus a parabola for each; half of the start is zero."""

    def __init__(self, shapes, dtype=torch.float64):
        generator = np.random.default_rng(0)
        self.sizes = [int(np.prod(shape)) for shape in shapes]
        total = sum(self.sizes)
        self.matrix = generator.normal(size=(8, total)) / np.sqrt(total)
        self.goal, self.centre = 3 * generator.normal(size=8), generator.normal(size=total)
        self.start = []
        for shape in shapes:
            weight = generator.normal(size=shape) * (generator.random(shape) < 0.5)
            weight[-1] = 0.0  # a whole group
            self.start.append(weight.astype(np.float32).astype(np.float64))
        self.params = [nn.Parameter(torch.tensor(weight, dtype=dtype)) for weight in self.start]
        for param in self.params:
            if param.dim() == 4:
                param.data = param.data.to(memory_format=torch.channels_last)

    def gradients(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        flat = np.concatenate([weight.ravel() for weight in weights])
        gradient = self.matrix.T @ (self.matrix @ flat - self.goal) + flat - self.centre
        pieces = np.split(gradient, np.cumsum(self.sizes)[:-1])
        return [piece.reshape(weight.shape) for piece, weight in zip(pieces, weights, strict=True)]

    def weights(self) -> list[np.ndarray]:
        return [param.detach().numpy().astype(np.float64) for param in self.params]

    def differentiate(self) -> None:
        """Give the parameters their gradients."""
        for param, gradient in zip(self.params, self.gradients(self.weights()), strict=True):
            param.grad = torch.tensor(gradient, dtype=param.dtype)
