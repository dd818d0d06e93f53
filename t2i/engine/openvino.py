"""OpenVINO as the engine of a pipeline on a CPU: each network is converted once and compiled for its input shapes.

A network keeps its place and its callers: `nn.Module.__call__` runs `_compiled_call_impl` where it is set, which is how
`torch.nn.Module.compile` works too. Solvers, guidance and the pipeline do not know of the engine.
"""

import functools
import importlib
import logging
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from t2i.autoencoder.encoder_decoder import Decoder, Encoder
from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import fingerprint
from t2i.conditioning import Conditioning
from t2i.engine import import_openvino
from t2i.errors import ConfigError, RunFailed
from t2i.files import atomic_folder, lock, read_json, sha256, write_json
from t2i.generator.unet import UNet
from t2i.progress import say
from t2i.text.base import TextEncoder
from t2i.text.clip import CLIPTextEncoder

FORMAT = 1  # of the converted models; raise it when the forward pass of a network changes
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
MOST_SHAPES, MOST_BYTES = 8, 2**30  # executables that a network keeps, and the bytes of weights in all of them
MODEL, WEIGHTS, ENTRY = "model.xml", "model.bin", "entry.json"


class Conversion(NamedTuple):
    """A network as a function of tensors, example inputs for its trace, and the call that its users make."""

    network: nn.Module
    traced: nn.Module
    example: tuple[Tensor, ...]
    config: str
    call: Callable[["Executables"], Callable[..., Any]]
    frees: bool = True  # torch's copy of the weights is not needed any more


class Executables:
    """A converted network: a function of float32 (or int64) tensors, compiled once for each combination of shapes."""

    def __init__(self, name: str, model: Any, dtype: torch.dtype, parameters: int) -> None:
        self.name, self.model, self.dtype = name, model, dtype
        self.most = max(1, min(MOST_SHAPES, MOST_BYTES // (4 * parameters)))
        self.requests: OrderedDict[tuple[torch.Size, ...], Any] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns the output for `inputs`, in the network's dtype."""
        shapes = tuple(x.shape for x in inputs)
        request = self.requests.pop(shapes, None) or self._compile(shapes)
        self.requests[shapes] = request
        arrays = [(x.float() if x.is_floating_point() else x).contiguous().numpy() for x in inputs]
        request.infer(arrays, share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy()).to(self.dtype)

    def _compile(self, shapes: tuple[torch.Size, ...]) -> Any:
        while len(self.requests) >= self.most:
            self.requests.popitem(last=False)
        model = self.model.clone()
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[
                self.dtype
            ],  # otherwise a CPU with bfloat16 instructions chooses that
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        with _failures(self.name, f"inputs of {', '.join('x'.join(map(str, shape)) for shape in shapes)}"):
            model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
            return _core().compile_model(model, "CPU", options).create_infer_request()


def attach(
    text_encoder: TextEncoder,
    unet: UNet,
    vae: AutoencoderKL,
    cache: Path | None = None,
    report: Callable[[str], None] = say,
) -> None:
    """Makes OpenVINO run the networks of a pipeline from now on, in their dtypes.

    Converted networks are kept in `cache` (by default `cache_folder()`), and torch's copies of the weights are freed:
    the networks cannot be saved, moved or changed afterwards. CLIP's text tower keeps its weights, from which clip skip
    builds a shorter one, that torch runs. Raises ConfigError if OpenVINO is not installed, does not offer a network's
    dtype, or a network is not on a CPU; RunFailed if a conversion fails.
    """
    conversions = {
        "text encoder": _of_tower(text_encoder),
        "U-Net": _of_unet(unet),
        "VAE encoder": _of_coder(vae.encoder, vae.config.in_channels, vae.factor),
        "VAE decoder": _of_coder(vae.decoder, vae.config.latent_channels, 1),
    }
    for name, conversion in conversions.items():
        _check_dtype(name, next(conversion.network.parameters()))
    for name, conversion in conversions.items():
        _attach(name, conversion, cache or cache_folder(), report)


def _check_dtype(name: str, weight: Tensor) -> None:
    if weight.device.type != "cpu":
        raise ConfigError("engine", f"OpenVINO runs on a CPU; the {name} is on {weight.device}", "openvino")
    if weight.dtype not in PRECISIONS:
        allowed = ", ".join(str(dtype)[6:] for dtype in PRECISIONS)
        raise ConfigError("dtype", f"the engine openvino offers {allowed}", str(weight.dtype)[6:])
    if weight.dtype == torch.bfloat16 and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("dtype", "this CPU has no bfloat16 instructions for OpenVINO: use float32", "bfloat16")


def is_attached(network: nn.Module) -> bool:
    """Returns True if OpenVINO runs `network`."""
    return isinstance(getattr(network._compiled_call_impl, "executables", None), Executables)


def cache_folder() -> Path:
    """Returns the folder of converted networks: `$T2I_CACHE`, or `t2i` in the user's cache folder."""
    if folder := os.environ.get("T2I_CACHE"):
        return Path(folder) / "openvino"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2i" / "openvino"


def _attach(name: str, conversion: Conversion, cache: Path, report: Callable[[str], None]) -> None:
    network = conversion.network
    state, dtype = network.state_dict(), next(network.parameters()).dtype
    count = sum(tensor.numel() for tensor in state.values())
    versions = f"{FORMAT} {torch.__version__} {_openvino().__version__} {PRECISIONS[dtype]}"
    key = fingerprint(state, versions, type(network).__name__, conversion.config, str(len(conversion.example)))
    model = _cached(name, key, conversion, cache, report, count)
    network._compiled_call_impl = conversion.call(  # pyright: ignore[reportAttributeAccessIssue]
        Executables(name, model, dtype, count)
    )
    network.to(dtype)
    if conversion.frees:
        for parameter in network.parameters():  # one value stands for all: shape, dtype and device stay
            parameter.data = torch.full((), float("nan"), dtype=dtype).expand(parameter.shape)


def _cached(
    name: str, key: str, conversion: Conversion, cache: Path, report: Callable[[str], None], parameters: int
) -> Any:
    """Returns the converted network, from `cache` or converted now; without a cache if it cannot be written."""
    entry = cache / key[:40]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(cache / f".{entry.name}.lock", wait=True):
            if (problem := _damage(entry)) is None:
                return _core().read_model(entry / MODEL)
            if entry.exists():
                report(f"{entry}: {problem}; it is converted again")
            report(f"converting the {name} ({parameters:,} parameters) for OpenVINO, once; kept in {entry}")
            model = _convert(name, conversion)
            with atomic_folder(entry) as tmp:
                _openvino().save_model(model, tmp / MODEL, compress_to_fp16=False)
                write_json(tmp / ENTRY, {"network": name, "sha256": sha256(tmp / MODEL, tmp / WEIGHTS)})
            return _core().read_model(entry / MODEL)
    except (OSError, ValueError) as error:
        report(f"{cache}: cannot be written ({error}): the {name} is converted anew each time")
        return _convert(name, conversion)


def _damage(entry: Path) -> str | None:
    """Returns the problem of a cached network, None if it is whole."""
    try:
        recorded = read_json(entry / ENTRY).get("sha256")
        return None if recorded == sha256(entry / MODEL, entry / WEIGHTS) else "damaged"
    except (OSError, ValueError):
        return "incomplete"


@torch.no_grad()
def _convert(name: str, conversion: Conversion) -> Any:
    """Returns the network as an OpenVINO model of any batch, size and number of tokens.

    torch's frontend is called by itself: `openvino.convert_model` would send telemetry.
    """
    manager = importlib.import_module("openvino.frontend").FrontEndManager()
    script = importlib.import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder

    with _failures(name, "the conversion"), _quiet():
        traced = conversion.traced.float().eval()
        graph = torch.jit.trace(traced, conversion.example, check_trace=False, strict=False)
        decoder = script(graph, example_input=conversion.example, shared_memory=True)
        frontend = manager.load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


class _UNetOfTensors(nn.Module):
    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        return self.unet(x, t, Conditioning(tokens, mask))


class _TowerOfTensors(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.tower(ids, attention_mask=mask).last_hidden_state


class _Call:
    """A call of a network whose `executables` take tensors alone."""

    def __init__(self, executables: Executables) -> None:
        self.executables = executables

    def __call__(self, x: Tensor) -> Tensor:
        return self.executables(x)


class _UNetCall(_Call):
    masked = False

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        mask = (cond.mask,) if self.masked else ()
        return self.executables(x, t.float(), cond.tokens, *mask)


class _MaskedUNetCall(_UNetCall):
    masked = True


class _TowerCall(_Call):
    def __call__(self, ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = (ids,) if attention_mask is None else (ids, attention_mask)
        return BaseModelOutput(last_hidden_state=self.executables(*inputs))  # pyright: ignore[reportArgumentType]


def _of_unet(unet: UNet) -> Conversion:
    config, side = unet.config, 8 * 2 ** (len(unet.config.block_out_channels) - 1)
    width = config.context_dim if isinstance(config.context_dim, int) else config.context_dim[0]
    mask = (torch.ones(2, 5, dtype=torch.bool),) if unet.mask_padding else ()
    example = (torch.zeros(2, config.in_channels, side, side), torch.zeros(2), torch.zeros(2, 5, width), *mask)
    call = _MaskedUNetCall if unet.mask_padding else _UNetCall
    return Conversion(unet, _UNetOfTensors(unet), example, config.model_dump_json(), call)


def _of_tower(encoder: TextEncoder) -> Conversion:
    ids = torch.zeros(2, encoder.max_tokens, dtype=torch.long)
    mask = (torch.ones_like(ids),) if getattr(encoder, "use_attention_mask", False) else ()
    config, frees = repr(encoder.file_config()), not isinstance(encoder, CLIPTextEncoder)
    return Conversion(encoder.tower, _TowerOfTensors(encoder.tower), (ids, *mask), config, _TowerCall, frees)


def _of_coder(network: Encoder | Decoder, channels: int, factor: int) -> Conversion:
    return Conversion(network, network, (torch.zeros(2, channels, 8 * factor, 8 * factor),), "", _Call)


def _openvino() -> Any:
    try:
        return import_openvino()
    except ImportError as error:
        raise ConfigError("engine", f"not installed ({error}): pip install 't2i[openvino]'", "openvino") from None


@functools.cache
def _core() -> Any:
    return _openvino().Core()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tracer, which warns of Python values in networks, and transformers, whose properties it reads."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def _failures(name: str, what: str) -> Iterator[None]:
    """Turns OpenVINO's errors into a RunFailed that names the network and the way out."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        raise RunFailed(f"OpenVINO: {what} of the {name} failed ({cause}): use the engine torch") from error
