"""Components of all heads of a layer at once against torch.linalg.svd head by head.

python -m benchmarks.extract [--heads 32] [--samples 1000] [--head-dim 128] [--rounds 5] [--threads 0]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from benchmarks.results import Results, table, verdict
from restorelcc.stages.extract.decompose import decompose


def planted(samples: int, heads: int, head_dim: int) -> Tensor:
    """Lost activations with a spectrum that falls by a thousand, as those of real heads do; [N, H, D]."""
    generator = torch.Generator().manual_seed(0)
    scale_D = torch.logspace(0, -3, head_dim)
    basis_HDD = torch.linalg.qr(torch.randn(heads, head_dim, head_dim, generator=generator)).Q
    return torch.einsum("nhd,hde->nhe", torch.randn(samples, heads, head_dim, generator=generator) * scale_D, basis_HDD)


def by_head(lost_NHD: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Every head on its own."""
    return [torch.linalg.svd(lost_NHD[:, head], full_matrices=False) for head in range(lost_NHD.shape[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("heads", 32), ("samples", 1000), ("head-dim", 128), ("rounds", 5), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    lost_NHD = planted(options.samples, options.heads, options.head_dim)
    ways = {
        "loop": (threads, lambda: by_head(lost_NHD)),
        "loop on one": (1, lambda: by_head(lost_NHD)),  # a small factorization is slower on two cores than on one
        "ours": (threads, lambda: decompose(lost_NHD)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, (count, way) in ways.items():
            torch.set_num_threads(count)
            start = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    loop, ours = by_head(lost_NHD), decompose(lost_NHD)
    exact = torch.linalg.svd(lost_NHD.transpose(0, 1).double(), full_matrices=False)
    of_loop = torch.stack([part[1] for part in loop])
    first = exact.S[:, :1]
    error = {
        name: float(((s.double() - exact.S) / first).abs().max())
        for name, s in (("loop", of_loop), ("ours", ours.singular_values_HD))
    }
    kept = options.head_dim // 2
    cosines = torch.linalg.svdvals(ours.directions_HDD[:, :kept].double() @ exact.Vh[:, :kept].mT)
    sine = (1 - cosines.min().clamp(max=1) ** 2).sqrt()
    each = {name: 1000 * median(values) / options.heads for name, values in seconds.items()}
    faster = {
        name: median([a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)])
        for name in ("loop", "loop on one")
    }
    out = Results("extract", "All heads of a layer at once", "make bench-extract")
    out.say(
        f"{options.heads} heads, D = {options.head_dim}, N = {options.samples}; {threads} threads unless it says one; "
        f"medians of {options.rounds} rounds in turns."
    )
    out.say()
    out.say(
        table(
            ["", "ms a head", "largest error of a singular value / sigma_1"],
            [
                ["`torch.linalg.svd` per head, float32", f"{each['loop']:.2f}", f"{error['loop']:.1e}"],
                ["the same on one thread, where it is fastest", f"{each['loop on one']:.2f}", ""],
                ["ours (float64 Gram, all heads)", f"{each['ours']:.2f}", f"{error['ours']:.1e}"],
            ],
        )
    )
    out.say()
    out.say(
        f"Ours is {faster['loop']:.1f} x as fast as the loop: {verdict(faster['loop'], 4)}; it is "
        f"{faster['loop on one']:.1f} x as fast as the loop on one thread."
    )
    out.say(
        f"Largest principal angle between the spans of the first {kept} directions and those of a float64 SVD: "
        f"{float(sine):.1e} rad."
    )
    out.write(threads)


if __name__ == "__main__":
    main()
