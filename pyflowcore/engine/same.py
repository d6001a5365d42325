"""Whether the module, which backward differentiates, is the function that the forward pass ran."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .prepared import Fixed

__all__ = ["SameFunction", "check_sources", "own_tensors"]

_network = torch.ops.pyflowcore.network.default

# Of the outputs' size. What rounding explains is below: a module may compute the phases of its time features in float32, or
# its products in tf32.
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-3}


def own_tensors(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


class SameFunction:
    """Compares the module's outputs with the packed network's while the rows are gone through; the verdict is at the end, for
    it makes a device wait.

    Raises:
        RuntimeError: the module has other tensors than when the trajectory ran; on the CPU, that they have other values.
    """

    def __init__(self, fixed: Fixed, own: Sequence[Tensor]) -> None:
        self._fixed = fixed
        self._apart: Tensor | None = None
        self._size = torch.zeros(())
        now = own_tensors(fixed.field.module)
        if len(now) != len(own) or any(one is not other for one, other in zip(now, own, strict=True)):
            raise RuntimeError(_changed("the module has other parameters or buffers"))
        # Exact, and sees what was written through .data; on a device it would wait for every tensor.
        if fixed.params.device.type == "cpu" and fixed.field.stale():
            raise RuntimeError(_changed("the module's weights have other values"))

    def compare(self, row: int, shown: Tensor, out: Tensor) -> None:
        """The first branch's output at a row's input; nothing has a gradient."""
        if not out.numel():
            return
        fixed = self._fixed
        cond = None if fixed.cond is None else fixed.cond[: len(shown)].detach()
        packed = _network(shown, fixed.made.times[row], cond, fixed.params, fixed.layers, fixed.features, 0)
        # A trajectory that runs away does so in both.
        apart = (out - packed).abs().nan_to_num(0.0, 0.0).max()
        size = packed.abs().nan_to_num(0.0, 0.0).max()
        self._apart = apart if self._apart is None else torch.maximum(self._apart, apart)
        self._size = torch.maximum(self._size.to(size), size)

    def check(self) -> None:
        """The verdict.

        Raises:
            RuntimeError: they are apart by more than rounding explains.
        """
        if self._apart is None:
            return
        # Where all outputs are next to zero, terms of the last layer's size have cancelled.
        size = float(self._size) + float(self._fixed.field.network.layers[-1].weight.abs().max())
        if (apart := float(self._apart)) > _TOLERANCE[self._apart.dtype] * size:
            raise RuntimeError(
                _changed(
                    f"the module's outputs differ by {apart:.3g} from those that the trajectory ran with (of size {size:.3g})"
                )
            )


def check_sources(outs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """That all gradients of the module's outputs end in tensors that get them.

    Raises:
        RuntimeError: the module uses a tensor with a gradient that is no parameter, buffer or condition.
    """
    known = {id(leaf) for leaf in leaves}
    seen = {leaf.grad_fn for leaf in leaves}  # None is among them, or they end the search
    nodes = [out.grad_fn for out in outs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in known:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"the module uses a tensor {list(node.variable.shape)} that requires grad and is neither a parameter nor a "  # type: ignore[attr-defined]
                "buffer, so it would get no gradient: register it, or detach it"
            )
        nodes += [following for following, _ in node.next_functions]


def _changed(what: str) -> str:
    return (
        f"{what}, so its gradient would be another function's: it changed after it was packed (its weights, its attributes, or "
        "by train() or eval()); call the fused field's refresh() before the trajectory, and change nothing until its backward"
    )
