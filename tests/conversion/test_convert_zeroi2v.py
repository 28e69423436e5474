"""The authors' ZeroI2V: their outputs in both forms from their tensors, and the command that converts their files."""

import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForVideoClassification

from conversion_scripts.common import read_entries
from conversion_scripts.convert_zeroi2v import main
from conversion_scripts.zeroi2v_config import PRESETS, backbone_in, config_for, offsets_of
from conversion_scripts.zeroi2v_names import bare, convert_state_dict, kind_of
from fusible import ZeroI2VConfig, ZeroI2VForVideoClassification, ZeroI2VModel
from support.model_tests.base import relative_error
from support.paths import GOLDEN, ROOT


DATA = GOLDEN / "zeroi2v"
SCRIPT = ROOT / "conversion_scripts" / "convert_zeroi2v.py"
CASES = sorted(file.stem for file in DATA.glob("*.safetensors"))


def read(case: str) -> tuple[dict, dict, dict, dict]:
    """Their training form and merged form with the classifier, inputs and outputs, and the configuration."""
    tensors = load_file(DATA / f"{case}.safetensors")
    head = {f"cls_{name}": tensor for name, tensor in tensors.items() if name.startswith("head.")}
    forms = [
        {f"backbone.{name.removeprefix(prefix)}": t for name, t in tensors.items() if name.startswith(prefix)} | head
        for prefix in ("state_dict.", "merged_state_dict.")
    ]
    return *forms, tensors, json.loads((DATA / f"{case}.json").read_text())


def offsets_in(facts: dict) -> list:
    backbone = {"type": facts["class_name"], "stdha_cfg": facts["config"]["stdha_cfg"]}
    return offsets_of(backbone, facts["config"]["width"], facts["config"]["heads"])


def load(state_dict: dict, facts: dict) -> ZeroI2VForVideoClassification:
    tensors = bare(state_dict)
    config = config_for(
        tensors,
        temporal_offsets=offsets_in(facts),
        adapter_scale=facts["adapter_scale"],
        num_attention_heads=facts["config"]["heads"],
    )
    model = ZeroI2VForVideoClassification(config).eval()
    model.load_state_dict(convert_state_dict(tensors))
    return model


@torch.no_grad()
def check(model: ZeroI2VForVideoClassification, tensors: dict, form: str) -> None:
    """Features of all frames, as theirs `[batch, channels, frames, 1, 1]`, and logits."""
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        pixels = tensors["input"].movedim(1, 2).to(dtype)
        features = model._forward_backbone(pixels).frame_features.movedim(1, 2)[..., None, None]
        assert relative_error(features, tensors[f"output_{form}"]) < 1e-5
        assert relative_error(model(pixels).logits, tensors[f"logits_{form}"]) < 1e-5


def test_all_cases_are_there():
    assert CASES == ["tiny", "tiny_ablation", "tiny_halfhead", "tiny_long", "tiny_past2", "tiny_t1"]


@pytest.mark.parametrize("case", CASES)
def test_training_form(case):
    state_dict, _, tensors, facts = read(case)
    model = load(state_dict, facts)
    check(model, tensors, "train_structure")
    assert (
        sum(p.numel() for name, p in model.named_parameters() if "classifier" not in name)
        == (facts["checks"]["n_params"])
    )
    assert (model.config.num_adapters, model.config.num_frames) == (
        {2: 4, 1: 3}[facts["config"]["num_tadapter"]],
        facts["config"]["num_frames"],
    )
    model.config.temporal_offsets = []
    still = ZeroI2VForVideoClassification(model.config).double().eval()
    still.load_state_dict(model.state_dict())
    features = still._forward_backbone(tensors["input"].movedim(1, 2).double()).frame_features.movedim(1, 2)[
        ..., None, None
    ]
    assert relative_error(features, tensors["no_shift_output"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_merged_form(case):
    """Ours is theirs: from their training tensors, and from their merged ones, whose weights are equal."""
    state_dict, merged, tensors, facts = read(case)
    fused = load(state_dict, facts).fuse()
    theirs = load(merged, facts)
    assert theirs.config.fused
    for name, tensor in theirs.state_dict().items():
        assert relative_error(fused.state_dict()[name], tensor) < 1e-5, name
    assert fused.state_dict().keys() == theirs.state_dict().keys()
    count = sum(parameter.numel() for name, parameter in fused.named_parameters() if "classifier" not in name)
    assert count == facts["checks"]["n_params_merged"]
    for model in (fused, theirs):
        check(model, tensors, "merged")


@pytest.mark.parametrize("case", CASES)
def test_offsets_from_their_notation(case):
    facts = read(case)[3]
    offsets, heads = offsets_in(facts), facts["config"]["heads"]
    size = facts["config"]["width"] // heads
    channels = []
    for entry in [*offsets, *[0] * (heads - len(offsets))]:
        parts = entry if isinstance(entry, list) else [entry]
        channels += [offset for offset in parts for _ in range(size // len(parts))]
    assert channels == facts["channel_offsets"]


@pytest.mark.parametrize(
    ("preset", "kind", "stdha"),
    [
        ("k400-base-8f", "ViT_Zero_CLIP", {"shift_div": 12}),
        ("k400-large-8f", "ViT_Zero_CLIP", {"shift_div": 8}),
        ("k400-large-32f", "ViT_Zero_CLIP", {"shift_div": 8, "long_shift_div": 8}),
        ("ssv2-large-32f", "ViT_Zero_CLIP_long", {"shift1_div": 8, "shift2_div": 16, "shift3_div": 16}),
    ],
)
def test_presets_are_their_configurations(preset, kind, stdha):
    chosen = PRESETS[preset]
    heads = {768: 12, 1024: 16}[chosen.width]
    assert offsets_of({"type": kind, "stdha_cfg": stdha}, chosen.width, heads) == chosen.temporal_offsets


def test_variants_of_the_ablations_are_refused():
    for stdha in ({"ops_type": "tcs"}, {"divide_head": True}):
        with pytest.raises(ValueError, match="Only the shift of heads"):
            offsets_of({"type": "ViT_Zero_CLIP", "stdha_cfg": stdha}, 48, 12)
    released = {"type": "ViT_Zero_CLIP_ablation", "stdha_cfg": {"divide_head": True, "long_shift_div": 12}}
    assert offsets_of(released, 48, 12) == [-1, 1, -2]


CFG = """
model = dict(
    type='Recognizer3D',
    backbone=dict(
        type='ViT_Zero_CLIP',
        pretrained='ViT-B/16',
        num_frames=4,
        adapter_scale=0.5,
        dropout_rate=0.2,
        stdha_cfg=dict(shift_div=12, divide_head=False)),
    cls_head=dict(type='I3DHead', num_classes=7))
lr = 0.1 * 3
"""


def test_backbone_in_the_text_of_a_configuration():
    assert backbone_in(CFG) == {
        "type": "ViT_Zero_CLIP",
        "pretrained": "ViT-B/16",
        "num_frames": 4,
        "adapter_scale": 0.5,
        "dropout_rate": 0.2,
        "stdha_cfg": {"shift_div": 12, "divide_head": False},
    }
    assert backbone_in("model = dict(type='TSN')") == {}


# the command


def arguments_for(facts: dict, *, scale: bool = True) -> list[str]:
    arguments = ["--num-attention-heads", str(facts["config"]["heads"])]
    arguments += ["--temporal-offsets", *(json.dumps(offset) for offset in offsets_in(facts))]
    return [*arguments, *(["--adapter-scale", str(facts["adapter_scale"])] if scale else [])]


def convert(file: Path, *arguments: str) -> Path:
    folder = file.parent / "converted"
    main(["--checkpoint", str(file), "--output", str(folder), *arguments])
    return folder


def refusal(file: Path, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        convert(file, *arguments)
    assert str(end.value).startswith("Error: ") and not (file.parent / "converted").exists()
    return str(end.value)


@torch.no_grad()
def error_of(folder: Path, tensors: dict, key: str) -> float:
    model = AutoModelForVideoClassification.from_pretrained(folder)
    return relative_error(model(tensors["input"].movedim(1, 2)).logits, tensors[key])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", ["tiny_halfhead", "tiny_t1"])
def test_command(case, fused, tmp_path, capsys):
    state_dict, _, tensors, facts = read(case)
    torch.save({"state_dict": state_dict}, tmp_path / "checkpoint.pth")
    folder = convert(tmp_path / "checkpoint.pth", *arguments_for(facts), *(["--fused"] if fused else []))
    assert f"{'fused' if fused else 'training'} form, 4 frames" in capsys.readouterr().out
    assert error_of(folder, tensors, "logits_merged" if fused else "logits_train_structure") < 1e-5
    config = ZeroI2VConfig.from_pretrained(folder)
    assert config.fused == fused and config.adapter_scale == facts["adapter_scale"] and config.num_labels == 7
    assert config.temporal_offsets == offsets_in(facts)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert [round(value * 255, 3) for value in processor.image_mean] == [122.769, 116.74, 104.04]
    frames = [torch.zeros(3, 40, 30, dtype=torch.uint8)] * 4
    size = config.backbone_config.image_size
    assert processor(frames, return_tensors="pt")["pixel_values"].shape == (1, 4, 3, size, size)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "video-classification" and "2310.01324" in card.text


def test_bare_tensors_and_merged_ones(tmp_path):
    """Without a prefix and a classifier; a merged checkpoint needs no scale."""
    state_dict, merged, tensors, facts = read("tiny_past2")
    tensors = {name: tensor for name, tensor in tensors.items() if "dict" not in name}
    for source, key in ((state_dict, "output_train_structure"), (merged, "output_merged")):
        plain = {name.removeprefix("backbone."): t for name, t in source.items() if name.startswith("backbone.")}
        save_file(plain, tmp_path / "bare.safetensors")
        folder = convert(tmp_path / "bare.safetensors", *arguments_for(facts, scale=source is state_dict))
        model = AutoModel.from_pretrained(folder)
        assert type(model) is ZeroI2VModel and model.config.fused == (source is merged)
        with torch.no_grad():
            features = model(tensors["input"].movedim(1, 2)).frame_features.movedim(1, 2)[..., None, None]
        assert relative_error(features, tensors[key]) < 1e-5


class HistoryBuffer:
    """As mmengine's: numpy arrays and a scalar; newer ones also refer to their methods."""

    def __init__(self) -> None:
        self._log_history, self._count_history = np.array([1.0, 0.5]), np.array([1, 1])
        self.last, self.method = np.float64(0.5), self.mean

    def mean(self) -> float:
        return float(self._log_history.mean())


@pytest.fixture
def mmengine_file(tmp_path, monkeypatch):
    """Writes a checkpoint as mmengine does, which is then not there when it is read."""

    def write(content: dict) -> Path:
        module = types.ModuleType("mmengine.logging.history_buffer")
        module.HistoryBuffer = HistoryBuffer
        with monkeypatch.context() as patch:
            patch.setattr(HistoryBuffer, "__module__", module.__name__)
            for name in ("mmengine", "mmengine.logging", module.__name__):
                patch.setitem(sys.modules, name, module if name == module.__name__ else types.ModuleType(name))
            history = {"loss": HistoryBuffer()}
            torch.save(content | {"message_hub": {"log_scalars": OrderedDict(history)}}, tmp_path / "mmengine.pth")
        assert "mmengine" not in sys.modules
        return tmp_path / "mmengine.pth"

    return write


def test_mmengine_files_tell_what_tensors_do_not(mmengine_file):
    """Without mmengine: offsets and scale are read from the text of the configuration."""
    state_dict, _, tensors, facts = read("tiny")
    meta = {"cfg": CFG, "epoch": 40, "dataset_meta": {"classes": [f"class {i}" for i in range(7)]}}
    file = mmengine_file({"meta": meta, "state_dict": OrderedDict(state_dict), "optimizer": {"state": {}}})
    assert "contradicts the configuration in the checkpoint" in refusal(
        file, "--num-attention-heads", "12", "--adapter-scale", "1"
    )
    assert "contradicts the configuration in the checkpoint" in refusal(
        file, "--num-attention-heads", "12", "--temporal-offsets", "1", "-1"
    )
    folder = convert(file, "--num-attention-heads", "12")
    assert error_of(folder, tensors, "logits_train_structure") < 1e-5
    config = ZeroI2VConfig.from_pretrained(folder)
    assert config.id2label[6] == "class 6" and config.adapter_dropout == 0.2 and config.temporal_offsets == [-1, 1]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"backbone.transformer.resblocks.0.T_Adapter_in_q.D_fc1.weight": torch.zeros(1)}, (), "of no known name"),
        ({"backbone.ln_pre.bias": None}, (), 'Missing key(s) in state_dict: "backbone.pre_layrnorm.bias"'),
        ({"backbone.transformer.resblocks.1.S_Adapter.D_fc1.bias": None}, (), "Missing key(s) in state_dict"),
        ({"backbone.conv1.weight": None}, (), "has no tensor 'conv1.weight'"),
        ({"backbone.transformer.resblocks.0.attn.in_proj_weight": None}, (), "no tensors of the authors' ZeroI2V"),
        ({"cls_head.fc_cls.weight": torch.zeros(7, 3)}, (), "size mismatch for classifier.weight"),
        ({}, ("--preset", "k400-base-8f"), "The preset has width 768, the tensors 48"),
        ({}, ("--num-frames", "8"), "--num-frames 8 contradicts the temporal embedding: 4"),
        ({}, ("--num-attention-heads", "5"), "give --num-attention-heads that divide it"),
        ({}, ("--temporal-offsets", *["1"] * 13), "13 entries for 12 heads"),
    ],
)
def test_what_does_not_fit(changes, arguments, message, tmp_path):
    state_dict, _, _, facts = read("tiny")
    changed = {name: tensor for name, tensor in (state_dict | changes).items() if tensor is not None}
    torch.save(changed, tmp_path / "checkpoint.pth")
    assert message in refusal(tmp_path / "checkpoint.pth", *arguments_for(facts), *arguments)


def test_what_tensors_do_not_show_must_be_given(tmp_path):
    state_dict, merged, _, facts = read("tiny")
    torch.save(state_dict, tmp_path / "checkpoint.pth")
    assert "give --num-attention-heads" in refusal(tmp_path / "checkpoint.pth")
    heads = arguments_for(facts)[:2]
    assert "give --preset or --temporal-offsets" in refusal(tmp_path / "checkpoint.pth", *heads)
    offsets = arguments_for(facts, scale=False)
    assert "0.5 on Kinetics-400" in refusal(tmp_path / "checkpoint.pth", *offsets)


def test_presets_are_compared_with_the_tensors():
    shapes = {"conv1.weight": (768, 3, 16, 16), "positional_embedding": (197, 768), "temporal_embedding": (1, 8, 768)}
    shapes |= {f"transformer.resblocks.{i}.attn.in_proj_weight": (2304, 768) for i in range(12)}
    shapes |= {"transformer.resblocks.0.mlp.c_fc.weight": (3072, 768), "fc_cls.bias": (400,)}
    for suffix in ("T_Adapter_in", "S_Adapter", "MLP_Adapter", "MLP_Adapter_out"):
        shapes[f"transformer.resblocks.0.{suffix}.D_fc1.weight"] = (192, 768)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = config_for(tensors, preset=PRESETS["k400-base-8f"])
    assert config == ZeroI2VConfig(
        backbone_config={"model_type": "clip_vision_model", "patch_size": 16}, architectures=None, num_labels=400
    )
    for name, message in (("k400-large-8f", "width 1024, the tensors 768"), ("ssv2-large-32f", "width 1024")):
        with pytest.raises(ValueError, match=message):
            config_for(tensors, preset=PRESETS[name])
    with pytest.raises(ValueError, match="--adapter-scale 1.0 contradicts the preset: 0.5"):
        config_for(tensors, preset=PRESETS["k400-base-8f"], adapter_scale=1.0)
    with pytest.raises(ValueError, match="frames 8, the tensors 4"):
        config_for(tensors | {"temporal_embedding": torch.empty(1, 4, 768)}, preset=PRESETS["k400-base-8f"])
    with pytest.raises(ValueError, match="400 classes, the tensors 51"):
        config_for(tensors | {"fc_cls.bias": torch.empty(51)}, preset=PRESETS["k400-base-8f"])


@pytest.mark.parametrize("whole", [False, True])
def test_clip_is_a_model_to_train(whole, tmp_path):
    """OpenAI's vision tower, or the whole of it: half precision, a projection, the text tower."""
    merged = bare(read("tiny")[1])
    clip = {name: t.half() for name, t in merged.items() if "temporal" not in name and "fc_cls" not in name}
    clip["proj"] = torch.zeros(48, 4).half()
    if whole:
        clip = {f"visual.{name}": tensor for name, tensor in clip.items()}
        clip |= {"transformer.resblocks.0.ln_1.bias": torch.zeros(4), "logit_scale": torch.zeros(())}
    torch.save(clip, tmp_path / "clip.pt")
    assert "must be given: --num-frames" in refusal(tmp_path / "clip.pt", "--num-attention-heads", "12")
    folder = convert(tmp_path / "clip.pt", "--num-attention-heads", "12", "--num-frames", "3")
    model = AutoModel.from_pretrained(folder)
    assert type(model) is ZeroI2VModel and model.dtype == torch.float32 and model.config.temporal_offsets == [-1, 1]
    assert kind_of(bare(clip)) == "clip" and torch.equal(
        model.backbone.post_layernorm.weight, merged["ln_post.weight"].half().float()
    )
    fused = model.fuse().state_dict()
    packed = merged["transformer.resblocks.1.attn.in_proj_weight"].half().float()
    assert torch.equal(fused["backbone.encoder.layers.1.self_attn.k_proj.weight"], packed[48:96])
    assert not fused["backbone.embeddings.temporal_embedding"].any()


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_does_not_run(tmp_path, mmengine_file):
    facts = read("tiny")[3]
    harm = tmp_path / "harm"
    torch.save({"state_dict": read("tiny")[0], "meta": Malicious(harm)}, tmp_path / "checkpoint.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(harm), protocol=2))
    for name in ("checkpoint.pth", "plain.pth"):
        assert "unpickling that may run code" in refusal(tmp_path / name, *arguments_for(facts))
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/data.pkl", pickle.dumps(Malicious(harm), protocol=2))
    assert "getattr is nothing that a tensor needs" in refusal(script, *arguments_for(facts))
    assert not harm.exists()


class Traced(torch.nn.Module):
    """Parameters by the names of a state dict, as OpenAI's files of CLIP have them."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_buffer(last, tensor)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript(tmp_path):
    """Half precision, views into larger storages, scalars; the tensors are those that torch itself reads."""
    matrix = torch.randn(3, 4).half()
    tensors = {"visual.a.weight": matrix, "visual.a.rows": matrix[1:].mT, "count": torch.tensor(5), "b.c.d": matrix[0]}
    script, cut = tmp_path / "script.pt", tmp_path / "cut.pt"
    torch.jit.trace(Traced(tensors), torch.zeros(1)).save(str(script))
    found = read_entries(script)
    expected = torch.jit.load(str(script)).state_dict()
    assert found.keys() == expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with zipfile.ZipFile(script) as source, zipfile.ZipFile(cut, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name)[:-8] if "/data/" in name else source.read(name))
    with pytest.raises(OSError, match="a tensor reaches beyond its data"):
        read_entries(cut)


def test_as_a_script(tmp_path):
    """As in its help, in a process that starts elsewhere and has neither tests nor checkout on its path."""
    state_dict, _, tensors, facts = read("tiny_long")
    torch.save({"state_dict": state_dict}, tmp_path / "checkpoint.pth")
    command = [sys.executable, SCRIPT, "--checkpoint", "checkpoint.pth", "--output", "out", *arguments_for(facts)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("out: training form, 8 frames"), result.stderr
    assert error_of(tmp_path / "out", tensors, "logits_train_structure") < 1e-5
