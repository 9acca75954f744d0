"""Warnings of what a training loop of one's own forgets, which would otherwise end in a wrong network in silence."""

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from sv_sparse.optim.checks import warn

if TYPE_CHECKING:
    from sv_sparse.optim.control import Controller

_MANY_UPDATES = 50  # of the optimizer without the controller: no loop leaves it out that long on purpose
_FAR = 0.005  # of the sparsity from the target, as a fraction
_FEW = 3  # groups of weights: so many fall or come back where duals are averaged or lambda moves a little
_EARLY = 0.5  # of total_steps: a run that ends before was planned longer, not stopped early
_RUN = 10  # updates: fewer are no run that is steered
_BEYOND = 1.2  # times total_steps
_FOLLOW = "controller.step() must follow every optimizer.step()"
_LENGTH = "total_steps must be the number of optimizer updates in the whole run"


class Reminders:
    """Watch one controller and its optimizer, and warn once of each mistake.

    Nothing is said of a controller that does not land (FixedController) or regulates nothing.

    Args:
        controller: what to watch; held by a weak reference only.
        active: whether to warn.
        said: topics of warnings that were given before.
    """

    def __init__(self, controller: "Controller", *, active: bool = True, said: Iterable[str] = ()) -> None:
        self._run = _Run(controller.total_steps, active=active)
        self._controller = weakref.ref(controller)
        self.said: set[str] = set(said)
        self._updates = 0  # of the optimizer since the controller's last step
        self._watches = controller.lands and bool(controller.groups)
        if self._watches:
            _count_updates(controller.optimizer, self)
            weakref.finalize(controller, self._run.end)

    @property
    def active(self) -> bool:
        """Return whether it warns; True unless set to False."""
        return self._run.active

    @active.setter
    def active(self, value: bool) -> None:
        self._run.active = value

    def _say(self, topic: str, text: str) -> None:
        if self._watches and self.active and topic not in self.said:
            self.said.add(topic)
            warn(text)

    def check_groups(self) -> None:
        """Warn where everything is in one group, as in ``AdaBreg(model.parameters())``."""
        controller = self._controller()
        if controller is None or len(controller.optimizer.param_groups) > 1:
            return
        thin = [param.ndim < 2 for param in controller.params]
        if any(thin) and not all(thin):
            self._say(
                "groups",
                f"the only group has weights together with {sum(thin)} biases or gains, which would become zero too: "
                "make the groups by partition(model)",
            )

    def count_update(self) -> None:
        """Count an update of the optimizer."""
        self._updates += 1
        if self._updates == _MANY_UPDATES and not self._run.landed:
            self._say(
                "step",
                f"the optimizer has made {_MANY_UPDATES} updates since the controller's last step, so that nothing "
                "leads to the target sparsity: call controller.step() after every optimizer.step()",
            )

    def count_step(self) -> None:
        """Count a step of the controller, which has counted it before."""
        controller = self._controller()
        assert controller is not None, "a controller that steps is alive"
        self._updates = 0
        self._run.landed = False
        self._run.over = controller.steps >= controller.total_steps and not controller.exact
        if controller.steps > _BEYOND * controller.total_steps + 1:
            self._say(
                "beyond",
                f"the controller has made {controller.steps} steps of total_steps={controller.total_steps}, and has "
                f"left lambda alone since: {_LENGTH}",
            )

    def before_landing(self, nonzero: int, wanted: int, size: int, unit: int) -> None:
        """Warn of a landing from far away or long before the end of the run.

        Args:
            nonzero: weights that are not zero.
            wanted: how many should survive.
            size: number of regulated weights.
            unit: most weights that become zero together.
        """
        controller = self._controller()
        assert controller is not None, "a controller that lands is alive"
        self._run.landed, self._run.over = True, False
        steps = f"after {controller.steps} of total_steps={controller.total_steps}"
        if controller.steps == 0:
            if self._updates >= _RUN:  # else it is one cut of a network, which is no run
                self._say("landing", f"landing {steps}: {_FOLLOW}")
            return
        far = abs(nonzero - wanted) > max(_FAR * size, _FEW * unit)
        early = controller.steps < _EARLY * controller.total_steps
        start = f"landing from {100 * (1 - nonzero / size):.2f} % zeros to {100 * (1 - wanted / size):.2f} %, {steps}"
        if far and not all(bool(param.isfinite().all()) for param in controller.params):
            self._say("landing", f"{start}: some weights are not finite, so the network is of no use")
        elif far and not early:
            self._say(
                "landing",
                f"{start}: lambda has not brought the sparsity to the target, or not held it there. Reasons can be "
                "a learning rate that is too small, or that stays high to the end (settle=0 then); frozen layers; "
                f"weights edited from outside; or a loop that leaves out steps: {_FOLLOW}",
            )
        elif early:
            self._say("landing", f"{start}: {_LENGTH}")

    def state_was_saved(self) -> None:
        """Note that a finished run may be landed elsewhere, from its state."""
        self._run.over = False

    def state_was_loaded(self) -> None:
        """Note that a loaded run may have been landed where it was made."""
        self._run.over, self._updates = False, 0


class _Run:
    """Progress of a run apart from its controller, so that it can be asked once that is gone."""

    def __init__(self, total_steps: int, *, active: bool) -> None:
        self.total_steps = total_steps
        self.active = active
        self.landed = False  # and not trained on since
        self.over = False  # all steps were made here, and not landed

    def end(self) -> None:
        """Warn, when the controller goes, that it never landed."""
        if self.over and self.active:
            warn(
                f"a run of total_steps={self.total_steps} ended without controller.land(), which makes the sparsity "
                "exact: call it once after the last step"
            )


def _count_updates(optimizer: torch.optim.Optimizer, reminders: Reminders) -> None:
    """Have the optimizer's updates counted by the latest of its controllers, as long as that lives."""
    earlier = optimizer.__dict__.get("_reminders_hook")
    if earlier is not None:
        earlier.remove()
    reference = weakref.ref(reminders)

    def hook(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # a counter would be compiled anew at every step
            return
        alive = reference()
        if alive is not None:
            alive.count_update()

    # Copies and pickles of a torch optimizer leave hooks behind, and attributes with them.
    optimizer.__dict__["_reminders_hook"] = optimizer.register_step_post_hook(hook)
