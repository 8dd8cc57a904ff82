"""The Triton kernels without a GPU: what a block launches, and what the CUDA compiler makes of it.

    python benchmarks/triton_kernels.py [--targets 80 86 90] [--front-end] [--json FILE]

A solver on torch's `meta` device walks through a block with its launches written down instead of
started. Each kernel is then compiled for the given compute capabilities (no GPU needed): seconds,
registers a thread, stack and shared memory in bytes. --front-end stops at Triton's own
intermediate form, which is quick and shows what the interpreter accepts and the compiler does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.measure import markdown_table
from skel_fit import FitConfig, load_skel, load_smpl
from skel_fit.default_body import default_body_directory
from skel_fit.solver.engine import Solver
from skel_fit.solver.kernels_triton import OPTIONS, TritonKernels
from skel_fit.solver.tables import VertexSet

_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.bool: "*i1",
}
_WAITS = ("nonzero", "_local_scalar_dense", "is_nonzero", "equal", "masked_select", "unique")


class Launches(TorchDispatchMode):
    """Counts what a GPU would be asked to run; refuses what would wait for it or for the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in _WAITS):
            raise AssertionError(f"{name} waits for the device")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(leaf.device.type == "cpu" and leaf.dim() > 0 for leaf in given):
            raise AssertionError(f"{name} copies from the host")
        if not (func.is_view or "empty" in name):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Written:
    """In place of a launch: the first call of each kernel, and how often it came."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}
        self.counts: Counter[str] = Counter()

    def __call__(self, kernel: Any, grid: tuple[int, ...], *given: Any, **options: Any) -> None:
        name = kernel.fn.__name__
        self.calls.setdefault(name, (kernel, given, options))
        self.counts[name] += 1


def solver_without_device(written: Written, rows: int = 64) -> Solver:
    """The default solver on the meta device: shapes and launches, no numbers."""
    models, meta = default_body_directory(), torch.device("meta")
    made = Solver.of(
        load_skel(models, "male"),
        load_smpl(models, "male"),
        FitConfig(kernels="torch", block_size=rows),
    )

    def moved(vertices: VertexSet) -> VertexSet:
        return replace(
            vertices,
            rows=vertices.rows.to(meta),
            basis=vertices.basis.to(meta),
            moment_basis=vertices.moment_basis.to(meta),
        )

    side = made.smpl_side
    return replace(
        made,
        device=meta,
        kernels=TritonKernels(made.skeleton, side.tree, made.dtype, meta, written),
        region_counts=made.region_counts.to(meta),
        joint_regressor=made.joint_regressor.to(meta),
        smpl=replace(side, basis=side.basis.to(meta)),
        plans=tuple(replace(plan, vertices=moved(plan.vertices)) for plan in made.plans),
    )


def launches_of_block(written: Written) -> dict[str, Counter[str]]:
    """What a whole block and a later one (two more rounds) launch, tables being uploaded."""
    rows, meta = 64, torch.device("meta")
    solver = solver_without_device(written, rows)
    poses, betas = (torch.zeros(rows, k, dtype=torch.float64, device=meta) for k in (72, 10))
    goal, index = solver.smpl_goal(poses, betas), torch.arange(rows, device=meta)
    found: dict[str, Counter[str]] = {}
    for _ in range(2):  # the first time uploads tables
        mode, before = Launches(), Counter(written.counts)
        if not found:
            block = solver._block(goal, betas, index)
            begin = solver._start(0, block, poses[:, :49])
            ended = solver._all_stages(block, solver._real(index), begin, 0)
            solver._last_stage(block, ended.state, solver._real(index), 0)
            found = {"whole": Counter(), "later": Counter()}
            continue
        with mode:
            block = solver._block(goal, betas, index)
            begin = solver._start(0, block, poses[:, :49])
            ended = solver._all_stages(block, solver._real(index), begin, 0)
        found["whole"] = mode.counts + (written.counts - before)
        mode, before = Launches(), Counter(written.counts)
        with mode:
            solver._last_stage(block, ended.state, solver._real(index), 0)
        found["later"] = mode.counts + (written.counts - before)
    return found


def source(kernel: Any, given: tuple[Any, ...], options: dict[str, Any]) -> ASTSource:
    """A kernel with the types of one call."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    positional = iter(given)
    for place, name in enumerate(kernel.arg_names):
        if name in options:
            signature[name], constants[(place,)] = "constexpr", options[name]
        else:
            value = next(positional)
            signature[name] = _POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
    return ASTSource(fn=kernel, signature=signature, constexprs=constants)


def compiled(call: tuple[Any, tuple[Any, ...], dict[str, Any]], capability: int) -> dict[str, Any]:
    """Seconds, registers, stack and shared memory of one kernel."""
    kernel, given, options = call
    begin = time.perf_counter()
    made = triton.compile(
        source(kernel, given, options),
        target=GPUTarget("cuda", capability, 32),
        options=OPTIONS | {"num_warps": options["num_warps"]},
    )
    found = {
        "seconds": time.perf_counter() - begin,
        "warps": options["num_warps"],
        "shared": made.metadata.shared,
        "registers": None,
        "stack": None,
    }
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if tool.exists():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            said = subprocess.run(
                [tool, "--dump-resource-usage", file.name],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        words = (word.split(":") for word in said.split())
        used = {word[0]: word[1] for word in words if len(word) == 2}
        found |= {"registers": int(used["REG"]), "stack": int(used["STACK"])}
    return found


def through_front_end(call: tuple[Any, tuple[Any, ...], dict[str, Any]], capability: int) -> int:
    """Lines of Triton's intermediate form of one kernel."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    kernel, given, options = call
    target = GPUTarget("cuda", capability, 32)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    made = source(kernel, given, options)
    chosen = backend.parse_options(OPTIONS | {"num_warps": options["num_warps"]})
    module = made.make_ir(
        target,
        chosen,
        backend.get_codegen_implementation(chosen),
        backend.get_module_map(),
        context,
    )
    return str(module).count("\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, nargs="+", default=[80, 86, 90])
    parser.add_argument("--kernels", nargs="+")
    parser.add_argument("--front-end", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("with TRITON_INTERPRET=1 nothing is compiled: unset it")
    written = Written()
    blocks = launches_of_block(written)
    totals = {name: sum(counts.values()) for name, counts in blocks.items()}
    found: dict[str, Any] = {"triton": triton.__version__, "launches": totals, "kernels": {}}
    print(f"triton {triton.__version__}; launches of a block: {totals}\n")
    rows = []
    for name, call in written.calls.items():
        if options.kernels and name not in options.kernels:
            continue
        for capability in options.targets:
            if options.front_end:
                result: Any = through_front_end(call, capability)
                rows.append([name, capability, result])
            else:
                result = compiled(call, capability)
                rows.append([name, capability, *result.values()])
            found["kernels"].setdefault(name, {})[capability] = result
    head = ["lines"] if options.front_end else ["seconds", "warps", "shared", "registers", "stack"]
    print(markdown_table(["kernel", "sm", *head], rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
