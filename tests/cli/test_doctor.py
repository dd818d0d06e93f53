"""`t2i doctor`: what works is tried, and a failure is reported with its cause and its remedy."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch

from t2i.cli.doctor import COLUMNS, format_check
from t2i.pipeline import doctor, doctor_devices
from t2i.pipeline.doctor import BAD, NOTE, OK, Check, check_packages, folder_size, least_versions
from t2i.pipeline.doctor_devices import check_attention, check_device, check_shipped, computes

CPU = torch.device("cpu")


@pytest.fixture
def run(t2i):
    """run(*arguments) -> (exit code, stdout, stderr) of t2i doctor."""
    return partial(t2i, "doctor")


def by_name(checks):
    return {check.name: check for check in checks}


def test_this_machine_works(run):
    code, out, err = run()
    assert code == 0 and out.endswith("everything that t2i needs works\n") and not err
    assert all(len(line) <= COLUMNS or "/" in line for line in out.splitlines())
    for word in (
        "python: ",
        "torch: ",
        "cpu, dtypes: fp32",
        "attention sdpa: works in float32",
        "model cache: ",
        "disk",
    ):
        assert word in out


def test_json_is_one_object_and_xformers_asked_for_and_missing_is_an_error(run):
    code, out, _ = run("--json", "--attention", "xformers")
    found = json.loads(out)
    checks = {check["name"]: check for check in found["checks"]}
    works = checks["cpu, attention xformers"]["status"] == OK or torch.cuda.is_available()
    assert found["ok"] == (code == 0) == works
    if not works:
        assert checks["cpu, attention xformers"]["status"] == BAD
        assert "xformers" in checks["cpu, attention xformers"]["text"]
    assert run("--attention", "flash")[0] == 2


def test_a_long_finding_is_folded_and_a_path_is_not():
    path = "/" + "a-b/" * 30
    text = format_check(Check("name", NOTE, "word " * 40 + path, "way " * 40))
    lines = text.splitlines()
    assert any(line.strip() == path for line in lines)
    assert all(len(line) <= COLUMNS for line in lines if path not in line)
    assert lines[0].startswith(" note name: word") and sum("->" in line for line in lines) == 1


def test_packages_that_are_missing_old_or_broken_say_so(monkeypatch, tmp_path):
    (tmp_path / "broken_module.py").write_text("import ctypes; ctypes.CDLL('nowhere.so')")
    monkeypatch.syspath_prepend(tmp_path)
    modules = {"torch": ("torch", ""), "missing_module": ("missing-package", ""), "broken_module": ("torch", "")}
    monkeypatch.setattr(doctor, "MODULES", modules | {"optional_module": ("optional", "optional")})
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["torch>=99.0", "no-such-package>=1.0", "pillow>=1.0"])
    found = by_name(check_packages())
    assert found["torch"].status == BAD and "is older than 99.0" in found["torch"].text
    assert found["torch"].way_out == "pip install 'torch>=99.0'"
    assert found["missing_module"].status == BAD and found["missing_module"].text == "not installed"
    assert found["broken_module"].status == BAD and "OSError: nowhere.so" in found["broken_module"].text
    assert found["optional_module"].status == NOTE and "optional" in found["optional_module"].way_out
    assert found["no-such-package"].status == BAD and found["other packages"].text.startswith("1 have")


def test_versions_that_are_asked_for():
    lines = [
        "torch>=2.10",
        "pydantic[email]>=2.7",
        "xformers>=0.0.28; extra == 'xformers'",
        "ruff>=0.5; extra == 'dev'",
    ]
    assert least_versions(lines) == {"torch": "2.10", "pydantic": "2.7", "xformers": "0.0.28"}


def test_without_torch_the_rest_is_still_said(monkeypatch, run):
    monkeypatch.setattr(doctor, "check_packages", lambda: iter([Check("torch", BAD, "not installed", "pip install")]))
    code, out, _ = run()
    assert code == 1 and "does not work: torch" in out and "-> pip install" in out and "disk" in out


def test_a_full_disk_is_an_error_with_a_way_out(monkeypatch, run):
    monkeypatch.setattr(doctor, "LEAST_FREE", 10**18)
    monkeypatch.setattr(doctor, "check_packages", lambda: iter([Check("torch", BAD, "left out", "")]))
    code, out, _ = run()
    assert code == 1 and "free some space" in out and "BAD  disk, this folder" in out


def test_a_dtype_that_computes_wrong_is_found(monkeypatch):
    assert computes(CPU, torch.float32) and computes(CPU, torch.bfloat16)
    conv2d = torch.nn.functional.conv2d

    def wrong(x, *rest, **options):
        return conv2d(x, *rest, **options) * (1.2 if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(torch.nn.functional, "conv2d", wrong)
    found = by_name(check_device(CPU, "sdpa"))["cpu, dtypes"]
    assert found.status == NOTE and found.text.startswith("fp32, fp16 work")
    assert found.way_out == "--dtype bf16 does not work on cpu"


@pytest.mark.parametrize(("asked", "status"), [("sdpa", NOTE), ("xformers", BAD)])
def test_attention_is_tried_and_not_believed(monkeypatch, asked, status):
    sdpa = doctor_devices.BACKENDS["sdpa"]
    monkeypatch.setitem(doctor_devices.BACKENDS, "xformers", lambda q, k, v, mask: sdpa(q, k, v, mask) * 1.1)
    found = by_name(check_attention(CPU, [torch.float32], asked))
    assert found["cpu, attention sdpa"].status == OK
    assert (
        found["cpu, attention xformers"].status == status
        and "differs from sdpa" in found["cpu, attention xformers"].text
    )
    monkeypatch.setitem(doctor_devices.BACKENDS, "xformers", sdpa)
    assert by_name(check_attention(CPU, [torch.float32], asked))["cpu, attention xformers"].status == OK


def test_sdpa_that_is_wrong_is_an_error(monkeypatch):
    sdpa = doctor_devices.BACKENDS["sdpa"]
    monkeypatch.setitem(doctor_devices.BACKENDS, "sdpa", lambda q, k, v, mask: sdpa(q, k, v, mask).roll(1, -1))
    found = by_name(check_attention(CPU, [torch.float32], "sdpa"))["cpu, attention sdpa"]
    assert (
        found.status == BAD
        and "sdpa has a relative error of" in found.text
        and "in torch.float32 at head size 40" in found.text
    )


def test_a_damaged_model_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    monkeypatch.setattr(doctor_devices, "find_model", lambda _: tmp_path)
    (found,) = check_shipped()
    assert found.status == BAD and "cannot be loaded" in found.text and "again" in found.way_out


def test_links_of_the_cache_are_not_counted_twice(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "blobs" / "a")
    assert folder_size(tmp_path) == 1000


def test_the_module_needs_neither_torch_nor_the_network():
    code = "import sys, t2i.cli.doctor; assert not {'torch', 'transformers', 'requests', 'httpx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
