"""Warnings about what a training loop forgets, which would otherwise end in a wrong network without a word.

They are the library's own, since any loop can forget ``controller.step()`` or ``finalize()`` (DECISIONS 83).
"""

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from sv_sparse.optim.validation import warn

if TYPE_CHECKING:
    from sv_sparse.optim.controllers.base import Controller

# Updates without the controller: no loop leaves it out that long on purpose.
_MAX_MISSED_STEPS = 50
_MAX_SPARSITY_ERROR = 0.005
# Groups of weights: so many change where dual variables are averaged or lambda moves a little.
_MAX_GROUP_ERROR = 3
# Fraction of total_steps: a run that ends before was planned longer, not stopped early.
_EARLY_FRACTION = 0.5
# Fewer updates are a single pruning of a network, not a run.
_MIN_RUN_STEPS = 10
# A run of so many times total_steps has a wrong total_steps.
_MAX_OVERRUN = 1.2
_STEP_RULE = "controller.step() must follow every optimizer.step()"
_LENGTH_RULE = "total_steps must be the number of optimizer updates in the whole run"


class Reminders:
    """Watcher of one controller and its optimizer that warns once of each mistake.

    It is silent about a controller whose ``has_target`` is False (FixedController) or that regularizes nothing.

    Args:
        controller: what to watch; held by a weak reference only.
        active: whether to warn. Default: True.
        issued: topics of warnings that were issued before.
    """

    def __init__(self, controller: "Controller", *, active: bool = True, issued: Iterable[str] = ()) -> None:
        self._run = _RunProgress(controller.total_steps, active=active)
        self._controller = weakref.ref(controller)
        self.issued: set[str] = set(issued)
        # Updates of the optimizer since the controller's last step.
        self._missed_steps = 0
        self._is_watching = controller.has_target and bool(controller.groups)
        if self._is_watching:
            _count_updates(controller.optimizer, self)
            weakref.finalize(controller, self._run.end)

    @property
    def active(self) -> bool:
        """True if it warns, which is the default."""
        return self._run.active

    @active.setter
    def active(self, value: bool) -> None:
        self._run.active = value

    def _warn_once(self, topic: str, message: str) -> None:
        if self._is_watching and self.active and topic not in self.issued:
            self.issued.add(topic)
            warn(message)

    def check_groups(self) -> None:
        """Warn where everything is in one group, as in ``AdaBreg(model.parameters())``."""
        controller = self._controller()
        if controller is None or len(controller.optimizer.param_groups) > 1:
            return
        is_vector = [param.ndim < 2 for param in controller.params]
        if any(is_vector) and not all(is_vector):
            self._warn_once(
                "groups",
                f"the only group has weights together with {sum(is_vector)} biases or gains, which would become zero "
                "too: make the groups by param_groups(model)",
            )

    def count_update(self) -> None:
        """Count an update of the optimizer."""
        self._missed_steps += 1
        if self._missed_steps == _MAX_MISSED_STEPS and not self._run.is_finalized:
            self._warn_once(
                "step",
                f"the optimizer has made {_MAX_MISSED_STEPS} updates since the controller's last step, so that nothing "
                "leads to the target sparsity: call controller.step() after every optimizer.step()",
            )

    def count_step(self) -> None:
        """Note that the controller has made a step."""
        controller = self._controller()
        assert controller is not None, "a controller that steps exists"
        self._missed_steps = 0
        self._run.is_finalized = False
        self._run.needs_finalize = controller.steps >= controller.total_steps and not controller.is_exact
        if controller.steps > _MAX_OVERRUN * controller.total_steps + 1:
            self._warn_once(
                "overrun",
                f"the controller has made {controller.steps} steps of total_steps={controller.total_steps}, and has "
                f"left lambda alone since: {_LENGTH_RULE}",
            )

    def before_finalize(self, nnz: int, target_nnz: int, size: int, max_group_size: int) -> None:
        """Warn where a run is finalized far from its target or long before its end.

        Args:
            nnz: number of nonzero weights.
            target_nnz: number of nonzero weights at the target.
            size: number of regularized weights.
            max_group_size: largest number of weights that become zero together.
        """
        controller = self._controller()
        assert controller is not None, "a controller that is finalized exists"
        self._run.is_finalized = True
        self._run.needs_finalize = False
        steps = f"after {controller.steps} of total_steps={controller.total_steps}"
        if controller.steps == 0:
            if self._missed_steps >= _MIN_RUN_STEPS:
                self._warn_once("finalize", f"finalizing {steps}: {_STEP_RULE}")
            return
        is_far = abs(nnz - target_nnz) > max(_MAX_SPARSITY_ERROR * size, _MAX_GROUP_ERROR * max_group_size)
        is_early = controller.steps < _EARLY_FRACTION * controller.total_steps
        sparsity, target = 100 * (1 - nnz / size), 100 * (1 - target_nnz / size)
        event = f"finalizing from {sparsity:.2f} % zeros to {target:.2f} %, {steps}"
        if is_far and not all(bool(param.isfinite().all()) for param in controller.params):
            self._warn_once("finalize", f"{event}: some weights are not finite, so the network is of no use")
        elif is_early:
            self._warn_once("finalize", f"{event}: {_LENGTH_RULE}")
        elif is_far:
            self._warn_once(
                "finalize",
                f"{event}: the sparsity has not reached the target, or not stayed there. Reasons can be a learning "
                "rate that is too small, or that stays high to the end (freeze_fraction=0 then); frozen layers; "
                f"weights edited from outside; or a loop that leaves out steps: {_STEP_RULE}",
            )

    def state_was_saved(self) -> None:
        """Note that a finished run may be finalized elsewhere, from its state."""
        self._run.needs_finalize = False

    def state_was_loaded(self) -> None:
        """Note that a loaded run may have been finalized where it was made."""
        self._run.needs_finalize = False
        self._missed_steps = 0


class _RunProgress:
    """Progress of a run apart from its controller, so that it still exists when the controller is collected."""

    def __init__(self, total_steps: int, *, active: bool) -> None:
        self.total_steps = total_steps
        self.active = active
        # True from finalize() until the network is trained on.
        self.is_finalized = False
        # All steps were made in this process, and finalize() was not called.
        self.needs_finalize = False

    def end(self) -> None:
        """Warn, when the controller is collected, that it was never finalized."""
        if self.needs_finalize and self.active:
            warn(
                f"a run of total_steps={self.total_steps} ended without controller.finalize(), which makes the "
                "sparsity exact: call it once after the last step"
            )


def _count_updates(optimizer: torch.optim.Optimizer, reminders: Reminders) -> None:
    """Count the optimizer's updates for the latest of its controllers, as long as that exists."""
    previous_hook = optimizer.__dict__.get("_reminders_hook")
    if previous_hook is not None:
        previous_hook.remove()
    reference = weakref.ref(reminders)

    def hook(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        # A counter would be compiled anew at every step.
        if torch.compiler.is_compiling():
            return
        watcher = reference()
        if watcher is not None:
            watcher.count_update()

    # copies and pickles of a torch optimizer leave hooks out, and this attribute with them
    optimizer.__dict__["_reminders_hook"] = optimizer.register_step_post_hook(hook)
