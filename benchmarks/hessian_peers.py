"""Hessian-vector products and spectral densities, each as one library or one plain loop does them.

A product is a function of a vector of all active coordinates; a density is a list of nodes and
weights. A library is imported where it is used, so that one that is missing leaves a hole in a
table, and nothing else. How each is treated, where there was a choice:

* Batch normalisation of a peer in training mode moves the running statistics; the loss does not
  see them. curvlinops, which refuses to move them under ``vmap``, is given a network without them.
* Attention of a peer runs on PyTorch's math backend: the default one has no second derivative.
* Pruned coordinates, which no peer knows, are zeros in the vector and left out of the product.
* A library that offers a density on a grid is asked for the nodes and weights below it.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Vector = npt.NDArray[np.float64]
Product = Callable[[Tensor], Tensor]

OURS = "torch_qsgd"
KEPT = "plain, graph kept"
BLOCKED = "plain, blocked Gram–Schmidt"
REBUILT = "plain, rebuilt"
FORWARD = "torch.func jvp of grad"
EIGENTHINGS = "hessian-eigenthings"
CURVLINOPS = "curvlinops"
CURVLINOPS_BOUNDS = "curvlinops, with its bounds"
PYHESSIAN = "PyHessian"
BACKPACK = "BackPACK"
GRADIENT = "gradient"
CHECKED, UNKEPT = f"{OURS}, with its self-check", f"{OURS}, graph not kept"
#: Methods that keep the graph of the gradient from product to product.
KEEPING = (KEPT, PYHESSIAN, BACKPACK)
#: Variants that say what a choice costs, measured once beside the others.
VARIANTS = (BLOCKED, CURVLINOPS_BOUNDS)
#: Name of the package on PyPI, and of the module that says whether it is there.
PACKAGES = {
    EIGENTHINGS: ("hessian-eigenthings", "hessian_eigenthings"),
    CURVLINOPS: ("curvlinops-for-pytorch", "curvlinops"),
    CURVLINOPS_BOUNDS: ("curvlinops-for-pytorch", "curvlinops"),
    PYHESSIAN: ("pyhessian", "pyhessian"),
    BACKPACK: ("backpack-for-pytorch", "backpack"),
}


@dataclass(frozen=True)
class Problem:
    """A network, one batch, and which coordinates are active; the loss is the cross-entropy."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    masks: dict[str, Tensor] = field(default_factory=dict)
    loss_fn: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def active(self) -> Tensor | None:
        """Places of the active coordinates in the flat vector; None where all are."""
        if not self.masks:
            return None
        named = self.model.named_parameters()
        kept = [self.masks.get(k, torch.ones_like(p, dtype=torch.bool)) for k, p in named]
        return torch.cat([mask.flatten() for mask in kept]).nonzero()[:, 0]

    @property
    def dimension(self) -> int:
        active = self.active
        return sum(p.numel() for p in self.parameters) if active is None else active.numel()

    def loss(self) -> Tensor:
        value: Tensor = self.loss_fn(self.model(self.inputs), self.targets)
        return value

    def gradient(self, create_graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.loss(), self.parameters, create_graph=create_graph)

    def copy(self) -> Problem:
        """Its own network, so that no library meets what another has left behind."""
        return Problem(
            copy.deepcopy(self.model), self.inputs, self.targets, self.masks, self.loss_fn
        )


@dataclass(frozen=True)
class Density:
    """Nodes, weights of sum 1, and the Hessian-vector products they took."""

    nodes: Vector
    weights: Vector
    products: int


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def shaped(v: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    parts = v.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def on_active(product: Product, problem: Problem) -> Product:
    """The product on active coordinates, by one that knows only all of them."""
    active, n = problem.active, sum(p.numel() for p in problem.parameters)
    if active is None:
        return product

    def restricted(v: Tensor) -> Tensor:
        return product(v.new_zeros(n).index_copy_(0, active, v))[active]

    return restricted


def our_product(problem: Problem, **options: Any) -> Product:
    from torch_qsgd.hessian.operator import HessianOperator

    masks = problem.masks or None
    options = {"keep_graph": True, "check": False, **options}
    operator = HessianOperator(
        problem.model, problem.loss_fn, problem.batch, masks=masks, **options
    )
    return lambda v: operator @ v


def kept_product(problem: Problem) -> Product:
    parameters = problem.parameters
    gradient = problem.gradient(create_graph=True)

    def product(v: Tensor) -> Tensor:
        tangent = shaped(v, parameters)
        return flat(torch.autograd.grad(gradient, parameters, tangent, retain_graph=True))

    return on_active(product, problem)


def rebuilt_product(problem: Problem) -> Product:
    parameters = problem.parameters

    def product(v: Tensor) -> Tensor:
        gradient = problem.gradient(create_graph=True)
        return flat(torch.autograd.grad(gradient, parameters, shaped(v, parameters)))

    return on_active(product, problem)


def forward_product(problem: Problem) -> Product:
    parameters = {k: p.detach() for k, p in problem.model.named_parameters()}
    listed = problem.parameters

    def loss(values: dict[str, Tensor]) -> Tensor:
        # Buffers of its own: forward mode may not write running statistics in place.
        buffers = {k: b.clone() for k, b in problem.model.named_buffers()}
        state = {**values, **buffers}
        outputs = torch.func.functional_call(problem.model, state, (problem.inputs,))
        value: Tensor = problem.loss_fn(outputs, problem.targets)
        return value

    def product(v: Tensor) -> Tensor:
        tangent = dict(zip(parameters, shaped(v, listed), strict=True))
        return flat(torch.func.jvp(torch.func.grad(loss), (parameters,), (tangent,))[1].values())

    return on_active(product, problem)


def eigenthings_operator(problem: Problem) -> Any:
    package = importlib.import_module("hessian_eigenthings.operators.hessian")
    losses = importlib.import_module("hessian_eigenthings.loss_fns.standard")
    loss_fn = losses.supervised_loss(problem.loss_fn)
    return package.HessianOperator(problem.model, [problem.batch], loss_fn)


def eigenthings_product(problem: Problem) -> Product:
    return on_active(eigenthings_operator(problem).matvec, problem)


def curvlinops_operator(problem: Problem, check: bool) -> Any:
    package = importlib.import_module("curvlinops")
    for layer in problem.model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return package.HessianLinearOperator(
        problem.model,
        problem.loss_fn,
        problem.parameters,
        [problem.batch],
        check_deterministic=check,
    )


def curvlinops_product(problem: Problem) -> Product:
    return on_active(curvlinops_operator(problem, check=False).__matmul__, problem)


def pyhessian_object(problem: Problem) -> Any:
    if problem.model.training:
        raise NotImplementedError("switches the network to eval mode")
    package = importlib.import_module("pyhessian")
    return package.hessian(problem.model, problem.loss_fn, data=problem.batch, cuda=False)


def pyhessian_product(problem: Problem) -> Product:
    package, hessian = importlib.import_module("pyhessian.utils"), pyhessian_object(problem)

    def product(v: Tensor) -> Tensor:
        tangent = shaped(v, problem.parameters)
        return flat(package.hessian_vector_product(hessian.gradsH, hessian.params, tangent))

    return on_active(product, problem)


def backpack_product(problem: Problem) -> Product:
    """With the gradient and its graph kept, as its documentation advises."""
    package = importlib.import_module("backpack.hessianfree.hvp")
    parameters, loss = problem.parameters, problem.loss()
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)

    def product(v: Tensor) -> Tensor:
        tangent = shaped(v, parameters)
        return flat(package.hessian_vector_product(loss, parameters, tangent, gradient))

    return on_active(product, problem)


PRODUCTS: dict[str, Callable[[Problem], Product]] = {
    OURS: our_product,
    KEPT: kept_product,
    REBUILT: rebuilt_product,
    FORWARD: forward_product,
    EIGENTHINGS: eigenthings_product,
    CURVLINOPS: curvlinops_product,
    PYHESSIAN: pyhessian_product,
    BACKPACK: backpack_product,
}


#: Ours with other options, of which only the memory is measured.
OUR_OPTIONS: dict[str, Callable[[Problem], Product]] = {
    CHECKED: partial(our_product, check=True),
    UNKEPT: partial(our_product, keep_graph=False),
}


def our_density(problem: Problem, steps: int, seed: int, check: bool = True) -> Density:
    from torch_qsgd.hessian.estimate import hessian_spectrum

    found = hessian_spectrum(
        problem.model,
        problem.loss_fn,
        problem.batch,
        steps=steps,
        probes=1,
        masks=problem.masks or None,
        generator=torch.Generator().manual_seed(seed),
        progress=False,
        check=check,
    )
    return Density(found.nodes, found.weights, found.products)


def kept_density(
    problem: Problem, steps: int, seed: int, check: bool = True, blocked: bool = False
) -> Density:
    """Lanczos with full reorthogonalization, and Gauss quadrature: the textbook's loop.

    ``blocked`` takes all components out at once, twice, by matrix-vector products: the fastest
    that a plain loop can do.
    """
    product, n = kept_product(problem), problem.dimension
    dtype = problem.parameters[0].dtype
    signs = torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed))
    v = (2 * signs - 1).to(dtype) / n**0.5
    basis, alphas, betas = torch.empty(steps, n, dtype=dtype), [], []
    for step in range(steps):
        basis[step] = v
        w = product(v)
        alphas.append(float(v @ w))
        rows = basis[: step + 1]
        if blocked:
            for _ in range(2):
                w -= rows.T @ (rows @ w)
        else:
            for row in rows:
                w -= (row @ w) * row
        betas.append(float(w.norm()))
        v = w / betas[-1]
    matrix = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return Density(nodes, vectors[0] ** 2, steps)


def eigenthings_density(problem: Problem, steps: int, seed: int, check: bool = True) -> Density:
    package = importlib.import_module("hessian_eigenthings.algorithms.spectral_density")
    operator = eigenthings_operator(problem)
    found = package.spectral_density(operator, num_runs=1, lanczos_steps=steps, seed=seed)
    nodes, weights = found.raw_eigenvalues[0].double(), found.raw_weights[0].double()
    return Density(nodes.numpy(), weights.numpy(), steps)


def curvlinops_density(
    problem: Problem, steps: int, seed: int, check: bool = True, bounds: bool = False
) -> Density:
    """Its Lanczos and its density; its search for bounds, 38 products and more, only if asked."""
    package = importlib.import_module("curvlinops.papyan2020traces.spectrum")
    products = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        operator = curvlinops_operator(problem, check)
        if bounds:
            matmat = operator._matmat

            def counted(*arguments: Any) -> Any:
                nonlocal products
                products += 1
                return matmat(*arguments)

            operator._matmat = counted
            ends = package.approximate_boundaries(operator)
        nodes, vectors = package.fast_lanczos(operator, steps)
        if not bounds:
            products, ends = steps, (float(nodes[0]), float(nodes[-1]))
        package.lanczos_approximate_spectrum_from_iter((nodes, vectors), ends, 1024, 3.0, 0.05)
    weights = vectors[0].double() ** 2
    return Density(nodes.double().numpy(), weights.numpy(), products)


def pyhessian_density(problem: Problem, steps: int, seed: int, check: bool = True) -> Density:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nodes, weights = pyhessian_object(problem).density(iter=steps, n_v=1)
    return Density(np.array(nodes[0], float), np.array(weights[0], float), steps)


#: A density by so many steps of one probe from this seed, with or without the library's own checks.
DENSITIES: dict[str, Callable[..., Density]] = {
    OURS: our_density,
    KEPT: kept_density,
    BLOCKED: partial(kept_density, blocked=True),
    EIGENTHINGS: eigenthings_density,
    CURVLINOPS: curvlinops_density,
    CURVLINOPS_BOUNDS: partial(curvlinops_density, bounds=True),
    PYHESSIAN: pyhessian_density,
}


@contextmanager
def circumstances_of(method: str) -> Iterator[None]:
    """What a method needs around its construction and its products."""
    if method.startswith(OURS):
        yield
    else:
        with sdpa_kernel(SDPBackend.MATH):
            yield


def missing(method: str) -> bool:
    return method in PACKAGES and importlib.util.find_spec(PACKAGES[method][1]) is None


def versions() -> dict[str, str]:
    found = {}
    for package, _ in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def reason(error: BaseException) -> str:
    """The first line of what was raised, short enough for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160]
