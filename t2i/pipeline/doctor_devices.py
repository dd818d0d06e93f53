"""Checks by trial that need torch: processor, devices, dtypes, attention backends, the shipped model."""

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2i.nn.attention import BACKENDS, Attention, set_attention_backend
from t2i.pipeline.doctor import BAD, NOTE, OK, Check, Checks, cause_of, size
from t2i.pipeline.find import SHIPPED, find_model

HEAD_SIZES = (40, 64, 80, 160)  # of Stable Diffusion 1 and 2, and of t2i's networks
LEAST_EPS = 2**-10  # float32 may compute in TF32


def check_processor() -> Checks:
    """Compares the number of cores with torch's number of threads."""
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"cores for this process: {cores}, torch threads: {threads}"
    if threads > cores:
        yield Check("threads", NOTE, text + "; more threads than cores are slow", f"set OMP_NUM_THREADS={cores}")
    else:
        yield Check("threads", OK, text)


def devices() -> list[torch.device]:
    """Returns the devices that torch can use."""
    available = [torch.device("cpu")]
    available += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return available + ([torch.device("mps")] if torch.backends.mps.is_available() else [])


def check_device(device: torch.device, attention: str) -> Checks:
    """Checks a device's memory, dtypes and attention backends, of which `attention` must work."""
    name = str(device)
    if device.type == "cuda":
        try:
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError as error:
            yield Check(name, BAD, f"cannot be used ({cause_of(error)})", "use --device cpu, or see `nvidia-smi`")
            return
        yield Check(name, OK, f"{torch.cuda.get_device_name(device)}, {size(free)} of {size(total)} free")
    elif device.type == "cpu":
        yield Check(name, OK, f"{platform.processor() or platform.machine()}{_memory()}")
        if torch.version.cuda and not torch.cuda.is_available():
            text = f"this torch is built for CUDA {torch.version.cuda} and sees no GPU"
            yield Check("cuda", NOTE, text, "no action needed without a GPU; with one, see `nvidia-smi`")
    else:
        yield Check(name, OK, "available")
    works = [dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if computes(device, dtype)]
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    missing = [short for dtype, short in names.items() if dtype not in works]
    text = f"{', '.join(names[dtype] for dtype in works) or 'none'} work in a matrix product and a convolution"
    status = BAD if "fp32" in missing else NOTE if missing else OK
    way_out = f"--dtype {' and '.join(missing)} does not work on {name}" if missing else ""
    yield Check(f"{name}, dtypes", status, text, way_out)
    yield from check_attention(device, works, attention)


def _memory() -> str:
    """Returns the machine's free and total memory as text; empty where /proc/meminfo is missing."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return ""
    kilobytes = dict(re.findall(r"(\w+):\s+(\d+) kB", path.read_text()))
    return ", " + " of ".join(size(int(kilobytes[key]) * 1024) for key in ("MemAvailable", "MemTotal")) + " free"


def computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns True if a matrix product and a convolution agree with float64 on the CPU."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 8, 32, 32, generator=rng).to(dtype) for _ in range(2))
    kernel = (torch.randn(16, 8, 3, 3, generator=rng) / 9).to(dtype)
    operations: tuple[Callable[..., Any], ...] = (
        lambda a, b, _: a @ b,
        lambda a, _, kernel: torch.nn.functional.conv2d(a, kernel, padding=1),
    )
    try:
        for operation in operations:
            output = operation(*(x.to(device) for x in (a, b, kernel))).cpu().double()
            exact = operation(a.double(), b.double(), kernel.double())
            if not (output - exact).abs().max() <= 8 * max(torch.finfo(dtype).eps, LEAST_EPS) * exact.abs().max():
                return False
    except (RuntimeError, NotImplementedError):
        return False
    return True


def check_attention(device: torch.device, dtypes: list[torch.dtype], required: str) -> Checks:
    """Checks every backend, forward and backward, on random blocks of the usual head sizes."""
    layers = nn.ModuleList(Attention(2 * d, heads=2, head_dim=d) for d in HEAD_SIZES)
    for backend in BACKENDS:
        works, causes = [], {}
        for dtype in dtypes:
            try:
                set_attention_backend(layers.to(device, dtype), backend)
                _compare(backend, device, dtype)
                works.append(str(dtype)[6:])
            except (ValueError, RuntimeError, NotImplementedError) as error:
                causes[" ".join(str(error).split())[:500]] = None
        name = f"{device}, attention {backend}"
        if works:
            yield Check(name, OK, f"works in {', '.join(works)} at head sizes {', '.join(map(str, HEAD_SIZES))}")
        bad = backend == "sdpa" or (backend == required and not works)
        for cause in list(causes)[: 1 if not works else None]:
            yield Check(name, BAD if bad else NOTE, cause)


def _compare(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError if a backend differs from softmax(q k^T / sqrt(d)) v in float64."""
    for head_size in HEAD_SIZES:
        rng = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 21, 2, head_size, generator=rng).to(dtype) for _ in range(3))
        output = BACKENDS[backend](q.to(device), k.to(device), v.to(device), None).cpu().double()
        scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) / head_size**0.5
        exact = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double())
        error = (output - exact).abs().max() / exact.abs().max()
        if not error <= 8 * max(torch.finfo(dtype).eps, LEAST_EPS):
            raise ValueError(f"{backend} has a relative error of {error:.1e} in {dtype} at head size {head_size}")


def check_shipped() -> Checks:
    """Loads the default model of `t2i generate`."""
    try:
        folder = find_model(None)
    except ValueError as error:
        yield Check("shipped model", NOTE, str(error).split(";")[0], "use -m FOLDER with every command")
        return
    try:
        from t2i.pipeline import Pipeline  # its imports may be broken

        pipeline = Pipeline.from_pretrained(folder)
    except Exception as error:
        yield Check("shipped model", BAD, f"{folder} cannot be loaded ({cause_of(error)})", f"fetch {SHIPPED} again")
        return
    weights = sum(weight.numel() for weight in pipeline.generator.unet.parameters())
    yield Check("shipped model", OK, f"{folder}, a U-Net of {weights / 1e6:.1f} million parameters")
