"""The product with a packed weight against torch's, for every level of the C file that this machine can run.

Letters: B tokens, O outputs, I inputs.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restorelcc.base.errors import BadInput
from restorelcc.release.packed import kernel as kernel_module
from restorelcc.release.packed import model as model_module
from restorelcc.release.packed.kernel import LEVELS, SOURCE, best_level, cache_folder, compiled
from restorelcc.release.packed.model import PackedLinear
from tests.release.packed.test_matrix import packed_of

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # of the largest


def packed_linear(weight_OI: Tensor, bias_O: Tensor | None = None) -> PackedLinear:
    plain = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
    layer = PackedLinear(plain)
    layer.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
    bits = weight_OI.view(BITS[weight_OI.dtype]).numpy()
    layer.hold(packed_of(bits.view(bits.dtype.str.replace("i", "u"))), weight_OI.dtype)
    return layer


def weight_of(outputs: int, inputs: int, dtype: torch.dtype, share: float = 0.5) -> Tensor:
    """Random, with an empty row and a full one among the others."""
    torch.manual_seed(outputs * 1000 + inputs)
    weight_OI = torch.randn(outputs, inputs)
    weight_OI[torch.rand(outputs, inputs) < share] = 0
    weight_OI[0] = 0
    weight_OI[-1] = torch.randn(inputs) + 3
    return weight_OI.to(dtype)


@pytest.fixture(params=[level for level in LEVELS if LEVELS.index(level) <= LEVELS.index(best_level())])
def level(request: pytest.FixtureRequest, compiler: str, monkeypatch: pytest.MonkeyPatch) -> str:
    library = compiled(request.param)
    assert library.level == request.param
    monkeypatch.setattr(model_module, "kernel", lambda: library)
    return request.param


@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (3, 7), (5, 63), (4, 64), (9, 65), (7, 200), (33, 1000)])
def test_every_shape_equals_torch(level: str, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight_OI, bias_O = weight_of(outputs, inputs, dtype), torch.randn(outputs).to(dtype)
    for bias in (None, bias_O):
        layer = packed_linear(weight_OI, bias)
        for tokens in (1, 2, 3, 8, 9, 11, 40):  # more than 8 take turns, 40 are multiplied by torch
            x_BI = torch.randn(tokens, inputs).to(dtype)
            expected = F.linear(x_BI.double(), weight_OI.double(), None if bias is None else bias.double())
            found = layer(x_BI)
            assert found.dtype == dtype
            scale = max(1.0, float(expected.abs().max()))
            assert float((found.double() - expected).abs().max()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_numbers_of_every_kind_keep_their_meaning(level: str, dtype: torch.dtype) -> None:
    """One survivor of each kind in a row of its own, times 1."""
    limits = torch.finfo(dtype)
    least = limits.smallest_normal * limits.eps  # the smallest subnormal
    special = [-0.0, float("nan"), float("inf"), -float("inf"), least, -3 * least, limits.max, limits.smallest_normal]
    weight_OI = torch.zeros(len(special), 70, dtype=dtype)
    for row, value in enumerate(special):
        weight_OI[row, 9 * row] = value
    layer = packed_linear(weight_OI)
    found = layer(torch.ones(1, 70, dtype=dtype))[0]
    expected = torch.tensor(special, dtype=dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    bits = BITS[dtype]
    assert torch.equal(layer.dense_weight().view(bits), weight_OI.view(bits))


def test_an_infinite_input_meets_a_zero_as_in_the_dense_product(level: str) -> None:
    weight_OI = weight_of(6, 70, torch.float32)
    x_BI = torch.randn(2, 70)
    x_BI[1, 3] = float("inf")
    expected = F.linear(x_BI, weight_OI)
    found = packed_linear(weight_OI)(x_BI)
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    if level != "plain C":  # goes from survivor to survivor and never meets the zeros
        assert torch.equal(found[1].isnan(), expected[1].isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_are_rounded_as_torch_rounds(level: str, dtype: torch.dtype) -> None:
    """The bias alone reaches the output: every number, halves between two of them too."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=generator, dtype=torch.int64).to(torch.int32)
    numbers = torch.cat([bits.view(torch.float32), torch.tensor([65519.0, 65520.0, 6e-8, 2.9e-8, 1.0 + 2**-9, 3e38])])
    layer = packed_linear(torch.zeros(len(numbers), 1, dtype=dtype), numbers)
    found = layer(torch.zeros(1, 1, dtype=dtype))[0]
    assert torch.equal(found.isnan(), numbers.isnan())
    assert torch.equal(found.nan_to_num(), numbers.to(dtype).nan_to_num())


def test_threads_give_the_same_bits(level: str) -> None:
    weight_OI = weight_of(300, 1000, torch.bfloat16)
    layer, x_BI = packed_linear(weight_OI), torch.randn(2, 1000).to(torch.bfloat16)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((layer(x_BI), layer(x_BI.repeat(30, 1))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one[0], results[0][0]) for one in results)
    assert all(torch.allclose(one[1].float(), results[0][1].float(), atol=0.5) for one in results)


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_without_a_kernel_torch_computes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "kernel", lambda: None)
    weight_OI = weight_of(9, 130, dtype)
    x = torch.randn(2, 3, 130).to(dtype)
    assert torch.equal(packed_linear(weight_OI)(x), F.linear(x, weight_OI))


def test_gradients_pass_to_the_input() -> None:
    weight_OI = weight_of(9, 130, torch.float32)
    x = torch.randn(2, 130, requires_grad=True)
    packed_linear(weight_OI)(x).sum().backward()
    assert torch.allclose(x.grad, weight_OI.sum(dim=0).expand(2, -1), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 64), (2, 64), (1, 256), (3, 1, 129)])
def test_an_input_of_another_width_is_refused_before_memory_is_touched(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"an input of {shape[-1]} features has no place in"):
        packed_linear(weight_of(9, 130, torch.float32))(torch.randn(shape))


def test_other_dtypes_and_autocast_are_those_of_a_linear() -> None:
    weight_OI, x = weight_of(9, 130, torch.float32), torch.randn(2, 130)
    assert torch.equal(packed_linear(weight_OI)(x.double()), F.linear(x.double(), weight_OI.double()))
    with torch.autocast("cpu", torch.bfloat16):
        assert packed_linear(weight_OI)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("tokens", [3, 50])
def test_the_default_device_is_not_where_the_kernel_writes(tokens: int, compiler: str) -> None:
    weight_OI = weight_of(33, 70, torch.bfloat16)
    x = torch.randn(tokens, 70, dtype=torch.bfloat16)
    expected = packed_linear(weight_OI)(x)
    with torch.device("meta"):  # as after torch.set_default_device("cuda")
        layer = packed_linear(weight_OI)
        found = layer(x)
    assert found.is_cpu
    assert torch.equal(found, expected)


def test_no_compiler_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    kernel_module.kernel.cache_clear()
    try:
        assert kernel_module.kernel() is None
        assert kernel_module.kernel() is None
    finally:
        kernel_module.kernel.cache_clear()
    said = capsys.readouterr().err
    assert said.count("there is no C compiler") == 1
    assert said.count("\n") == 1


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo fake 1 && exit\necho no such luck >&2\nexit 1\n')
    fake.chmod(0o700)
    monkeypatch.setenv("CC", str(fake))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match="no such luck"):
        compiled("plain C")
    assert list((tmp_path / "cache/restorelcc/kernels").iterdir()) == []


def test_a_compiler_that_lacks_a_level_makes_the_next_lower_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, compiler: str
) -> None:
    """A compiler of before AVX-512 VBMI2 still gives a kernel, and that is told."""
    old = tmp_path / "cc"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *mavx512vbmi2*|*mavx2*) echo unknown flag >&2; exit 1;; esac\nexec {compiler} "$@"\n'
    )
    old.chmod(0o700)
    monkeypatch.setenv("CC", str(old))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_module, "best_level", lambda: "AVX2")
    assert kernel_module.best_compiled().level == "plain C"
    assert "the kernel for AVX2 cannot be made, that for plain C is slower" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "sentence"),
    [("cc 'no end", "which is no command"), ("false", "`.*false --version` fails"), ("nowhere/cc", "no C compiler")],
)
def test_a_senseless_compiler_is_one_sentence(command: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.raises(RuntimeError, match=sentence):
        compiled("plain C")


def test_compiled_code_is_kept_for_one_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(BadInput, match="may be written by others"):
        cache_folder()
    folder.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(BadInput, match="belongs to another user"):
        cache_folder()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is a link"):
        cache_folder()


RUNS = [level for level in LEVELS if LEVELS.index(level) <= LEVELS.index(best_level())]


@pytest.mark.slow
@pytest.mark.parametrize("level", [*RUNS, "AVX-512 VBMI2, emulated"])
def test_no_byte_beyond_a_buffer_is_touched(level: str, compiler: str, tmp_path: Path) -> None:
    """The C file with the address and undefined-behaviour sanitizers, on buffers of exactly the size it asks for.

    Instructions that this processor lacks are computed in C (emulated.h), each by its description.
    """
    program = tmp_path / "sanitized"
    flags = ["-DEMULATED"]
    if level in RUNS:
        flags = [kernel_module._FLAG.get(need, f"-m{need}") for need in kernel_module._NEEDS[level]]
    sanitizers = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = Path(__file__).with_name("sanitized.c")
    command = [compiler, *flags, *sanitizers, f'-DKERNEL="{SOURCE}"', str(source), "-o", str(program), "-lm"]
    subprocess.run(command, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 1000


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of another processor")
def test_every_level_compiles(compiler: str) -> None:
    """Also those that this machine cannot run: only its level is asked for, which needs no such instruction."""
    assert compiled("AVX-512 VBMI2").level == "AVX-512 VBMI2"


def test_the_levels_of_python_and_c_are_the_same() -> None:
    assert set(kernel_module._NEEDS) == set(LEVELS)
    assert np.array_equal(sorted(map(len, kernel_module._NEEDS.values())), [0, 6, 11])
