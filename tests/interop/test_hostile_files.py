"""Damaged and hostile single files: their tensors, the JSON in their headers, a `.yaml` beside them."""

import json
import random

import pytest
from hostile import attempt, damaged, hostile_safetensors, safetensors, split_safetensors

from t2i.interop.single_file import read_single_file, write_single_file

from .tiny import ODD, SCHEDULER, make, same

BIAS = "first_stage_model.encoder.conv_in.bias"
HARMLESS = {"the same key twice"}
METADATA = [
    "[" * 100_000, '{"a":' * 100_000, "", "null", "[]", "{", '"\\ud83e"', '{"schema_version": 1e999}',
    '{"schema_version": 2}', '{"schema_version": 1}', '{"schema_version": ' + "9" * 5000 + "}",
    '{"schema_version": 1, "unet": {}, "vae": {}, "text_encoder": {}, "scheduler": {}}',
]  # fmt: skip
ALIASES = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
NOTES = [
    "", "[]", "{", "model: 3", "model: {params: []}", "\0", "[" * 5000, "x" * 100_000, "\xff" * 9,
    "model: {params: {scale_factor: x}}", "model: {params: {linear_start: []}}", "model: {params: {timesteps: yes}}",
    "model: {params: {parameterization: 3}}", "model: {params: {parameterization: !!python/object/apply:exit [1]}}",
    f"a: &a [x]\n{ALIASES}model: {{params: {{scale_factor: *i}}}}",
]  # fmt: skip


@pytest.fixture
def whole(tmp_path):
    write_single_file(tmp_path / "m.safetensors", make(ODD), SCHEDULER)
    return (tmp_path / "m.safetensors").read_bytes()


def refused(path, data):
    """Whether the file is, and then with a reason that names it."""
    path.write_bytes(data)
    found, reason = attempt(read_single_file, path)
    assert reason is None or str(path.with_suffix("")) in reason
    return found is None


def test_tensors(tmp_path, whole):
    path, rng = tmp_path / "m.safetensors", random.Random(4)
    header = 8 + int.from_bytes(whole[:8], "little")
    assert not refused(path, whole)
    assert sum(refused(path, damaged(rng, whole, 0, header)) for _ in range(25)) >= 20
    for name, data in hostile_safetensors(whole, BIAS).items():
        assert refused(path, data) == (name not in HARMLESS), name
    found = read_single_file(path)
    assert all(same(found.components[part][1], state) for part, (_, state) in make(ODD).items())


def test_metadata(tmp_path, whole):
    header, numbers = split_safetensors(whole)
    own = json.loads(header.pop("__metadata__")["t2i"])

    def about(text):
        return safetensors(header | {"__metadata__": {"t2i": text}}, numbers)

    assert not refused(tmp_path / "m.safetensors", about(json.dumps(own)))
    for text in METADATA:
        assert refused(tmp_path / "m.safetensors", about(text)), text[:80]


def test_yaml(tmp_path, whole):
    notes = tmp_path / "m.yaml"
    notes.write_text("model: {params: {parameterization: v}}")
    assert not refused(tmp_path / "m.safetensors", whole)
    for text in NOTES:
        notes.write_bytes(text.encode("latin1"))
        assert refused(tmp_path / "m.safetensors", whole), text[:80]
