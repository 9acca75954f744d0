"""Proximal operator of the l1 norm, and the subgradient that starts a dual variable."""

import torch

REGULARIZERS = ("l1", "none")


def shrink(v: torch.Tensor, lambda_: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Proximal operator of ``lambda_ * ||.||_1``: the soft threshold.

    Computed as ``v - clamp(v, -lambda_, lambda_)`` (Moreau's identity), which is exactly zero where
    ``|v| <= lambda_``, nonzero elsewhere, and never a negative zero.

    Args:
        v: any shape.
        lambda_: threshold, 0-dim, on the device of ``v``.
        out: takes the result, shaped like ``v`` but not ``v`` itself; without it, new memory does.

    >>> shrink(torch.tensor([-2.0, 0.5, 3.0]), torch.tensor(1.0))
    tensor([-1.,  0.,  2.])
    """
    clamped = torch.clamp(v, -lambda_, lambda_, out=out)
    return torch.sub(v, clamped, out=out)


def subgradient(weight: torch.Tensor, lambda_: torch.Tensor, delta: float) -> torch.Tensor:
    """The subgradient of the elastic net ``lambda_ * ||w||_1 + ||w||^2 / (2 delta)`` that a dual starts from.

    Where the weight is zero every value in ``[-lambda_, lambda_]`` is a subgradient; zero is taken.

    >>> subgradient(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor(0.5), delta=1.0)
    tensor([-2.5000,  0.0000,  3.5000])
    """
    return weight / delta + lambda_ * weight.sign()
