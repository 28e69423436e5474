"""`fusible demo`: the main job from start to end on real images."""

import json
import signal
import subprocess
import sys
import time

from typer.testing import CliRunner

from fusible import RePaViTForImageClassification
from fusible.cli import app
from fusible.data.images.digits import digits_dataset


def test_digits_are_split_by_class():
    data = digits_dataset()
    assert (len(data["train"]), len(data["test"])) == (1437, 360)
    assert data["train"][0]["image"].size == (8, 8)
    counts = [data["test"]["label"].count(digit) for digit in range(10)]
    assert min(counts) >= 34 and max(counts) <= 37
    assert data["test"]["label"] != digits_dataset(seed=1)["test"]["label"]


def test_demo_trains_fuses_and_compares(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--folder", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    facts = json.loads((tmp_path / "digits.json").read_text())
    assert facts["accuracy"][0] == facts["accuracy"][1] >= 0.95
    assert facts["changed_predictions"] == 0 and facts["max_abs_difference"] < 1e-4
    for name in ("parameters", "macs_per_image", "file_bytes"):
        assert facts[name][1] < 0.65 * facts[name][0], name
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    for text in ("parameters", "multiply-adds", "median latency", "test accuracy", "changed predictions", "Δlogit"):
        assert text in result.output
    fused = RePaViTForImageClassification.from_pretrained(tmp_path / "digits-fused")
    assert fused.config.fused and fused.config.id2label[7] == "7"
    assert facts["parameters"][1] == sum(parameter.numel() for parameter in fused.parameters())


def test_interrupted_demo_leaves_no_half_written_folder(tmp_path):
    # a process that is started in the background may inherit that interrupts are ignored
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [
        sys.executable,
        "-c",
        f"{listen}; from fusible.cli import app; app()",
        "demo",
        "--folder",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen = ""
    while "{'loss'" not in seen and process.poll() is None:  # the first epoch is done
        seen += process.stderr.read(1) if process.stderr else ""
        if "it/s" in seen:
            break
    time.sleep(0.5)
    for _ in range(3):  # Python drops an interrupt that meets a destructor
        process.send_signal(signal.SIGINT)
        try:
            _, rest = process.communicate(timeout=25)
            break
        except subprocess.TimeoutExpired:
            pass
    assert process.returncode == 130, rest[-2000:]
    assert "Interrupted" in rest
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".digits", "digits-fused"))]
