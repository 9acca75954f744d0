"""Closed loop on log lambda: the base class for a rule of one's own."""

from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.controllers.base import Controller
from sv_sparse.optim.validation import require_number

# A factor on 0 could never raise it.
_MIN_LAMBDA, _MAX_LAMBDA = 1e-10, 1e10


class LogLambdaController(Controller):
    """Base class of controllers that add to log lambda, by the gap between target and measured sparsity.

    A rule is one method, ``_log_lambda_step``. State of its own are tensors like the gap, made in ``__init__`` and
    named in ``_state_tensors``: they are saved, loaded, and follow the model to another device. Arguments are those
    of Controller.

    >>> from sv_sparse.optim import AdaBreg
    >>> class IntegralController(LogLambdaController):
    ...     def _log_lambda_step(self, gap):
    ...         return 0.5 * gap
    >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 0, 0, 0, 0, 0, 0]]))
    >>> optimizer = AdaBreg([weight], lambda_init=0.1)
    >>> controller = IntegralController(optimizer, target_sparsity=0.875, total_steps=10)
    >>> weight.grad = torch.zeros_like(weight)
    >>> optimizer.step()
    >>> controller.step()  # a sparsity of 0.75 makes a gap of 0.125
    >>> round(float(controller.lambda_), 4)
    0.1064
    """

    _state_tensors: tuple[str, ...] = ()
    update_interval = 1

    def _check_groups(self) -> None:
        super()._check_groups()
        if self.groups and not self._lambdas().min() > 0:
            raise ValueError(f"lambda_ of a regularized group must start above 0, got {float(self._lambdas().min())}")

    def _update(self) -> None:
        self._move_state_to_device()
        if self.steps % self.update_interval == 0:
            # Multiplied, not added to: lambda may start wrong by orders of magnitude, in either direction.
            log_step = self._log_lambda_step(self.gap())
            self._set_lambda((self._lambdas() * log_step.exp()).clamp(_MIN_LAMBDA, _MAX_LAMBDA))

    def _log_lambda_step(self, gap: Tensor) -> Tensor:
        """Return what to add to log lambda.

        Args:
            gap: target minus measured sparsity: 0-dim, or of each weight, a vector, where ``allocation`` is not global.
        """
        raise NotImplementedError

    def _move_state_to_device(self) -> None:
        """Follow the model to another device or precision."""
        lambda_ = self.optimizer.lambda_of(self.groups[0])
        for name in self._state_tensors:
            tensor = getattr(self, name)
            if tensor.device != lambda_.device or tensor.dtype != lambda_.dtype:
                setattr(self, name, tensor.to(lambda_))

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the optimizer's state: tensors and plain data."""
        state_dict = super().state_dict()
        for name in self._state_tensors:
            state_dict[name] = getattr(self, name).clone()
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; see Controller for what is refused."""
        super().load_state_dict(state_dict)
        for name in self._state_tensors:
            setattr(self, name, torch.as_tensor(state_dict[name]).to(self.lambda_, copy=True))

    def _state_keys(self) -> tuple[str, ...]:
        return (*super()._state_keys(), *self._state_tensors)


def check_gain(alpha: float, gamma: float) -> None:
    """Raise a ValueError unless alpha is above 0 and gamma in (0, 1]."""
    require_number("alpha", alpha, "above 0", above=0)
    require_number("gamma", gamma, "above 0 and at most 1", above=0, at_most=1)
