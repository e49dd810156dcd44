"""The Hessian of a model's mean loss, as a linear operator."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from torch_qsgd.batches import Batches, Count, digest, samples
from torch_qsgd.checks import require_flag, require_number, require_one_of
from torch_qsgd.derivatives.coordinates import Coordinates
from torch_qsgd.errors import DivergenceError
from torch_qsgd.hessian.curvature import Curvature, LossFunction, free_memory
from torch_qsgd.hessian.selfcheck import check_curvature
from torch_qsgd.names import nearest

Masks = Mapping[Any, Tensor]

KINDS = ("hessian", "ggn")


class HessianOperator:
    r"""Hessian of the mean loss over some data, restricted to active coordinates.

    .. math::
        H = \frac{1}{\sum_b c_b} \sum_b c_b \nabla_\theta^2 L_b(\theta), \qquad
        L_b = \mathtt{loss\_fn}(\mathtt{model}(x_b), y_b)

    with :math:`c_b` the batch's number of samples, so that batches of any sizes give the Hessian
    of one large batch (in train mode, batch normalisation still sees each batch alone). The model
    runs as it is, in train or eval mode, with derivatives that are right through normalisations
    and attention, and is left as it was: running statistics, flags, ``.grad``, random states.
    Dropout draws the same masks at each product.

    Args:
        model: any module; its parameters must rest while the operator is used.
        loss_fn: of outputs and targets; a scalar.
        data: one batch as a tuple ``(inputs, targets)``, or an iterable of batches: a list, a
            ``DataLoader``. Inputs that are a tuple are unpacked, a mapping is passed by keyword.
        parameters: of the model, to differentiate; by default all that require a gradient.
        masks: bool tensors by parameter or by its name, as ``QuantumSGD.masks``: True on active
            coordinates. Parameters without one are dense.
        layers: names of modules or parameters, or patterns such as ``"layer*.conv1"``, to
            restrict to.
        kind: ``"hessian"``, or ``"ggn"``, the generalized Gauss–Newton matrix.
        reduction: ``"mean"`` where ``loss_fn`` averages over a batch; ``"sum"`` where it sums:
            then the Hessian is that of the sum.
        keep_graph: ``"auto"`` keeps the graphs of as many batches as ``memory`` allows, and of
            one batch always; True keeps all; False makes them anew at each product, which then
            costs a gradient more.
        memory: bytes that graphs, and batches of a loader, may take; by default half of what is
            free.
        count: a function of inputs and targets: the number of terms that a batch's loss is the
            mean of, where that is not the number of samples (tokens, say).
        process_group: where each rank holds its part of the data: products are then summed over
            the ranks, weighted right.
        check: whether to check at construction that the operator is symmetric, that a second
            evaluation agrees with the first, that the model is left as it was, and, in eval mode
            with several batches, that the first one's parts make up the whole.

    Raises:
        ValueError: for an argument outside what is allowed, or an operator that fails its check.
        GraphError: where the model holds an operation without a second derivative.
        DivergenceError: where the loss, or a product, is NaN or infinite.
        SizeError: where a graph does not fit into memory.

    Cost: the graph of one batch takes the memory of a training step; a product 2.0 to 2.3
    gradients with kept graphs, and one more without (ResNet-18, ``benchmarks/hessian.py``). The
    check costs two products and two gradients on one batch, with several batches two more.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> x, y = torch.randn(5, 3), torch.randn(5, 1)
        >>> H = HessianOperator(model, nn.functional.mse_loss, (x, y))
        >>> H.shape
        (3, 3)
        >>> v = torch.tensor([1.0, 0.0, 0.0])
        >>> torch.allclose(H @ v, (2 / 5) * x.T @ x @ v, atol=1e-6)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        *,
        parameters: Iterable[Tensor] | None = None,
        masks: Masks | None = None,
        layers: str | Sequence[str] | None = None,
        kind: str = "hessian",
        reduction: str = "mean",
        keep_graph: str | bool = "auto",
        memory: float | None = None,
        count: Count | None = None,
        process_group: dist.ProcessGroup | None = None,
        check: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss_fn):
            raise ValueError(f"loss_fn must be callable, got {type(loss_fn).__name__}")
        require_one_of("kind", kind, KINDS)
        require_one_of("reduction", reduction, ("mean", "sum"))
        if not isinstance(keep_graph, bool) and keep_graph != "auto":
            raise ValueError(f"keep_graph must be 'auto', True or False, got {keep_graph!r}")
        if count is not None and (not callable(count) or reduction == "sum"):
            raise ValueError(
                "count must be a function of inputs and targets, with reduction='mean'"
            )
        require_flag("check", check)
        if torch.is_inference_mode_enabled():
            raise ValueError("leave torch.inference_mode(): nothing can be differentiated there")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.kind = kind
        chosen = _chosen_parameters(model, parameters, layers)
        self.parameter_names = list(chosen)
        leaves = list(chosen.values())
        device = leaves[0].device
        if memory is not None:
            memory = require_number("memory", memory, 0, otherwise=", in bytes")
        batches = Batches(data, device, memory or free_memory(device) / 4)
        terms = None if reduction == "sum" else count or samples
        self._curvature = Curvature(
            model, loss_fn, leaves, batches, kind, terms, keep_graph, memory
        )
        self._positions = list(range(len(leaves)))
        self._masks = _masks_by_name(model, chosen, masks)
        self._mean = reduction == "mean"
        self._group = process_group
        self._coordinates = Coordinates(leaves, [self._masks.get(n) for n in chosen])
        if self.dimension == 0:
            raise ValueError("no coordinate is active: all masks are empty")
        if check:
            check_curvature(self._curvature, batches, self._coordinates, self._mean)

    # ---- As a matrix -------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """n, the number of active coordinates."""
        return self._coordinates.size

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.dimension, self.dimension

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors: the widest of the parameters', at least float32."""
        return self._coordinates.dtype

    @property
    def device(self) -> torch.device:
        """Of vectors: the first parameter's."""
        return self._coordinates.device

    @property
    def fingerprint(self) -> str:
        """A checksum of all the model's parameters. Cost: one pass over them."""
        return digest(self._curvature.model.parameters())

    @property
    def products(self) -> int:
        """Products with one vector so far, over all data each, with those of its blocks."""
        return self._curvature.products

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """H v, or H V.

        Args:
            vectors: shape (n,) or (n, k), of ``dtype``, on ``device``.

        Returns:
            The same shape. Each batch whose graph is not kept is gone through once for all k.
        """
        if not isinstance(vectors, Tensor) or vectors.dim() not in (1, 2):
            raise ValueError("give a vector of shape (n,) or a matrix of shape (n, k), a tensor")
        if len(vectors) != self.dimension:
            raise ValueError(
                f"the operator has {self.dimension:,} active coordinates, and the vector "
                f"{len(vectors):,}"
            )
        columns = vectors.detach().to(self.device, self.dtype)
        columns = columns.unsqueeze(1) if vectors.dim() == 1 else columns
        product, weight, unit = self._curvature.multiply(
            columns, self._coordinates, self._positions
        )
        if self._group is not None:
            product = product.mul_(unit).contiguous()
            terms = torch.tensor(weight * unit, dtype=torch.float64, device=self.device)
            dist.all_reduce(product, group=self._group)
            dist.all_reduce(terms, group=self._group)
            weight = float(terms)
        if self._mean and weight != 1:
            product.div_(weight)
        if not bool(torch.isfinite(product.sum())) and not bool(torch.isfinite(product).all()):
            raise DivergenceError(
                "a product with the Hessian is NaN or infinite: look at the weights and the loss, "
                "or compute in float64 (model.double())"
            )
        return product.squeeze(1) if vectors.dim() == 1 else product

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator``, symmetric, on NumPy vectors."""

        def multiply(vectors: Any) -> Any:
            columns = torch.as_tensor(np.ascontiguousarray(vectors))
            return (self @ columns).cpu().numpy()

        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        return LinearOperator(
            self.shape, matvec=multiply, matmat=multiply, rmatvec=multiply, dtype=dtype
        )

    def broadcast(self, vector: Tensor) -> Tensor:
        """The vector as the first rank has it; itself without a process group."""
        if self._group is not None:
            dist.broadcast(vector, group=self._group, group_src=0)
        return vector

    # ---- Vectors and tensors -----------------------------------------------------------------

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The vector (n,) of tensors by parameter name; names that are left out count as zero.

        Raises:
            ValueError: for a name that is no parameter of the operator, or another shape.
        """
        for name, tensor in tensors.items():
            if name not in self.parameter_names:
                raise ValueError(_unknown("parameter", name, self.parameter_names))
            shape = self._curvature.parameters[
                self._positions[self.parameter_names.index(name)]
            ].shape
            if tensor.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(shape)}, and the tensor {tuple(tensor.shape)}"
                )
        return self._coordinates.flatten([tensors.get(name) for name in self.parameter_names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Tensors by parameter name, as in a ``state_dict``; zero at pruned places."""
        tensors = self._coordinates.unflatten(vector, self.dtype, keep_format=False)
        return dict(zip(self.parameter_names, tensors, strict=True))

    # ---- Parts -------------------------------------------------------------------------------

    def block(self, layers: str | Sequence[str]) -> HessianOperator:
        """The diagonal block of some layers, on the same graphs: no data is gone through again.

        Args:
            layers: names or patterns, as at construction.

        Cost: none; its products cost less than the whole operator's.
        """
        known = dict(zip(self.parameter_names, self._positions, strict=True))
        names = _matching(layers, list(known))
        part = object.__new__(HessianOperator)
        part.__dict__.update(self.__dict__)
        part.parameter_names = names
        part._positions = [known[name] for name in names]
        part._coordinates = Coordinates(
            [self._curvature.parameters[i] for i in part._positions],
            [self._masks.get(name) for name in names],
        )
        if part.dimension == 0:
            raise ValueError(f"no coordinate of {layers!r} is active")
        return part

    def close(self) -> None:
        """Free the graphs. Dropping the operator does so too."""
        self._curvature.close()

    def __enter__(self) -> HessianOperator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        n = f"{self.dimension:,}"
        return f"HessianOperator({n} × {n}, kind={self.kind!r}, {self.dtype}, {self.device})"


def _chosen_parameters(
    model: nn.Module, parameters: Iterable[Tensor] | None, layers: str | Sequence[str] | None
) -> dict[str, Tensor]:
    known: dict[str, Tensor] = dict(model.named_parameters())
    aliases = _aliases(model)
    if parameters is None:
        chosen = {name: p for name, p in known.items() if p.requires_grad}
    else:
        wanted = {id(p) for p in parameters}
        chosen = {name: p for name, p in known.items() if id(p) in wanted}
        if len(chosen) != len(wanted):
            raise ValueError(
                f"{len(wanted) - len(chosen)} of the given parameters are not the model's"
            )
        frozen = [name for name, p in chosen.items() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"{frozen[0]} has requires_grad=False: switch it on, or leave it out of parameters"
            )
    if layers is not None:
        names = [alias for alias, name in aliases.items() if name in chosen]
        wanted_names = {aliases[alias] for alias in _matching(layers, names)}
        chosen = {name: p for name, p in chosen.items() if name in wanted_names}
    if not chosen:
        raise ValueError("the model has no parameter that requires a gradient")
    for name, p in chosen.items():
        if p._backward_hooks:
            raise ValueError(
                f"{name} has a hook on its gradient, which would change the Hessian: remove it, or "
                "leave the parameter out"
            )
        if not p.is_floating_point():
            raise ValueError(f"{name} has dtype {p.dtype}: only real floating point has a Hessian")
    return chosen


def _matching(layers: str | Sequence[str], names: Sequence[str]) -> list[str]:
    patterns = [layers] if isinstance(layers, str) else list(layers)
    found: set[str] = set()
    for pattern in patterns:
        here = {
            name
            for name in names
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
        }
        if not here:
            modules = {name.rpartition(".")[0] for name in names}
            raise ValueError(_unknown("layer", pattern, [*names, *sorted(modules - {""})]))
        found |= here
    if not patterns:
        raise ValueError("layers is empty: give names or patterns, or None for all")
    return [name for name in names if name in found]


def _aliases(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter; those that share a tensor stand for the first of them."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def _masks_by_name(
    model: nn.Module, chosen: Mapping[str, Tensor], masks: Masks | None
) -> dict[str, Tensor]:
    aliases = _aliases(model)
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for key, mask in (masks or {}).items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise ValueError("masks must map parameters, or their names, to bool tensors")
        if isinstance(key, Tensor):
            if id(key) not in names:
                raise ValueError(
                    f"a mask of shape {tuple(mask.shape)} belongs to a tensor that is no "
                    "parameter of the model"
                )
            name = names[id(key)]
        else:
            if key not in aliases:
                raise ValueError(_unknown("parameter", str(key), list(aliases)))
            name = aliases[key]
        if name in chosen:  # others are of parameters outside the chosen layers
            found[name] = mask
    return found


def _unknown(what: str, given: str, known: Sequence[str]) -> str:
    near = nearest(given, known)
    hint = f"; did you mean {near!r}?" if near else "."
    some = ", ".join([*known[:12], *(["…"] if len(known) > 12 else [])])
    return f"no {what} {given!r}{hint} Known: {some}"
