"""What methods are without compression, tensor by tensor."""

from typing import Any

import torch


class HeavyBall(torch.optim.Optimizer):
    """v <- beta v + (1 - beta) g from v = g on, x <- x - eta v.

    A gradient that is missing is zero; a frozen x or v stays.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step."""
        begins = not self.state
        for group in self.param_groups:
            beta = 0.0 if begins else group["momentum"]
            for x in group["params"]:
                v = self.state[x].setdefault("v", torch.zeros_like(x))
                if not x.requires_grad:
                    continue
                g = (
                    torch.zeros_like(x)
                    if x.grad is None
                    else x.grad + group["weight_decay"] * x
                )
                v.copy_(beta * v + (1 - beta) * g)
                x.sub_(group["lr"] * v)
