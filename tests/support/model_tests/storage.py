"""Saving and loading: either form, whole or in shards, in any dtype, through every class."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

from fusible._auto import auto_class_of

from ..processes import run_script
from .base import ModelTests


def assert_same_tensors(actual, expected) -> None:
    assert actual.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], tensor), name


class StorageTests(ModelTests):
    def save_again(self, fused, folder) -> None:
        fused.save_pretrained(folder, fused=True)

    @pytest.mark.parametrize("fused", [False, True])
    def test_saved_is_loaded(self, model_class, main_case, fused, tmp_path):
        model = self.make_model(model_class, main_case, torch.float32)
        model.save_pretrained(tmp_path / "model", fused=fused)
        loaded, info = self.load(model_class, tmp_path / "model", output_loading_info=True)
        assert not any(info.values()), info
        expected = model.fuse() if fused else model
        assert type(loaded) is type(expected) and self.is_fused(loaded) == fused and not self.is_fused(model)
        assert_same_tensors(loaded, expected)
        assert torch.equal(self.output(loaded), self.output(expected))

    def test_square_commutes(self, model_class, case, tmp_path):
        """Fusing then saving is saving, loading, then fusing."""
        model = self.make_model(model_class, case, torch.float32)
        model.save_pretrained(tmp_path / "training")
        model.save_pretrained(tmp_path / "fused", fused=True)
        fused = self.load(model_class, tmp_path / "fused")
        assert_same_tensors(fused, model_class.from_pretrained(tmp_path / "training").fuse())
        assert_same_tensors(fused, model_class.from_pretrained(tmp_path / "training", fused=True))
        self.save_again(fused, tmp_path / "again")
        assert_same_tensors(self.load(model_class, tmp_path / "again"), fused)

    def test_auto_classes(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        for fused in (False, True):
            model.save_pretrained(tmp_path / "model", fused=fused)
            assert type(AutoConfig.from_pretrained(tmp_path / "model")) is type(model.config)
            base = AutoModel.from_pretrained(tmp_path / "model")
            assert type(base) is self.model_classes[0] and self.is_fused(base) == fused
            for name, tensor in base.state_dict().items():
                expected = (model.fuse() if fused else model).state_dict()[self.name_with_head(name)]
                assert torch.equal(tensor, expected), name
        model.save_pretrained(tmp_path / "training")
        fused = AutoModel.from_pretrained(tmp_path / "training", fused=True)
        assert self.is_fused(fused)
        assert_same_tensors(fused, base)

    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, main_case, fused, dtype, tmp_path):
        model = self.make_model(self.head_class(), main_case, dtype)
        model.save_pretrained(tmp_path, fused=fused)
        assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
        loaded = self.load(type(model), tmp_path)
        assert loaded.dtype == dtype
        assert_same_tensors(loaded, model.fuse() if fused else model)

    def test_fused_load_casts_after_fusing(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path)
        for dtype in (torch.bfloat16, "bfloat16"):
            loaded = type(model).from_pretrained(tmp_path, fused=True, dtype=dtype)
            assert_same_tensors(loaded, model.fuse().to(torch.bfloat16))
            assert loaded.config.dtype == torch.bfloat16

    @pytest.mark.parametrize("fused", [False, True])
    def test_shards(self, main_case, fused, tmp_path):
        """In a folder that held a whole file, shards replace it, and the other way round."""
        old = self.make_model(self.head_class(), main_case, torch.float32)
        new = self.make_model(self.head_class(), main_case, torch.float32)
        for model, size in ((old, "1GB"), (new, "20KB"), (old, "1GB"), (new, "10KB"), (old, "20KB")):
            model.save_pretrained(tmp_path, fused=fused, max_shard_size=size)
            assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size != "1GB")
            loaded = self.load(type(model), tmp_path)
            assert_same_tensors(loaded, model.fuse() if fused else model)

    @pytest.mark.parametrize("fused", [False, True])
    def test_passed_state_dict(self, main_case, fused, tmp_path):
        """As gathered by a launcher: the weights come from it, and it is left alone."""
        model, other = (self.make_model(self.head_class(), main_case, torch.float32) for _ in range(2))
        state_dict = other.state_dict()
        model.save_pretrained(tmp_path, state_dict=state_dict, fused=fused)
        assert state_dict.keys() == other.state_dict().keys()
        assert_same_tensors(self.load(type(model), tmp_path), other.fuse() if fused else other)

    @pytest.mark.parametrize("fused", [False, True])
    def test_other_processes_write_nothing(self, main_case, fused, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path / "model", is_main_process=False, fused=fused, state_dict={})
        assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.json"))

    @pytest.mark.parametrize("fused", [False, True])
    def test_form_is_in_the_weight_files(self, main_case, fused, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path, fused=fused, max_shard_size="20KB")
        for file in tmp_path.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
            assert metadata["fusible_form"] == ("fused" if fused else "training")
            assert len(metadata["fusible_digest"]) == 16 and metadata["format"] == "pt"

    def test_training_form_of_a_fused_checkpoint(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path, fused=True)
        config = model.config
        for arguments in ({"fused": False}, {"config": config}):
            with pytest.raises(ValueError, match="cannot be recovered"):
                type(model).from_pretrained(tmp_path, **arguments)
        with pytest.raises(ValueError, match="cannot be recovered"):
            AutoModel.from_pretrained(tmp_path, fused=False)

    def test_weights_of_the_other_form_are_refused(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        for fused, message in ((False, "Load it with fused=True"), (True, "cannot be recovered")):
            model.save_pretrained(tmp_path, fused=fused)
            config = json.loads((tmp_path / "config.json").read_text())
            (tmp_path / "config.json").write_text(json.dumps(config | {"fused": not fused}))
            with pytest.raises(ValueError, match=message):
                type(model).from_pretrained(tmp_path)

    def test_truncated_file(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        whole = file.read_bytes()
        for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(OSError, match=r"model\.safetensors is no complete safetensors file"):
                type(model).from_pretrained(tmp_path)

    def test_quantized_and_adapted_models_are_refused(self, main_case, tmp_path):
        from peft import LoraConfig, get_peft_model

        model = self.make_model(self.head_class(), main_case, torch.float32)
        linear = next(name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
        adapted = get_peft_model(
            self.make_model(self.head_class(), main_case, torch.float32), LoraConfig(target_modules=[linear])
        )
        model.config.quantization_config = {"quant_method": "torchao"}
        for unfusible, message in ((model, "quantized"), (adapted.base_model.model, "merge_and_unload")):
            with pytest.raises(ValueError, match=message):
                unfusible.fuse()
            with pytest.raises(ValueError, match=message):
                unfusible.save_pretrained(tmp_path / "model", fused=True)
        assert not (tmp_path / "model").exists()
        assert_same_tensors(
            adapted.merge_and_unload().fuse(),
            type(model)
            .from_pretrained(
                None, config=self.make_config(main_case), state_dict=adapted.merge_and_unload().state_dict()
            )
            .fuse(),
        )

    def test_loading_fused_with_quantization_is_refused(self, main_case, tmp_path):
        self.make_model(self.head_class(), main_case, torch.float32).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="cannot be combined with quantization_config"):
            self.head_class().from_pretrained(tmp_path, fused=True, quantization_config={"quant_method": "torchao"})

    def test_folders_work_without_the_package(self, tmp_path):
        """Every class from the folder of the one with a head, both forms, and saving again from there."""
        model = self.make_model(self.head_class(), self.main_cases[0], torch.float32)
        model.save_pretrained(tmp_path / "training")
        model.save_pretrained(tmp_path / "fused", fused=True)
        inputs = self.make_inputs(model.config)
        inputs.pop("labels")
        outputs = {}
        for model_class in self.model_classes:
            loaded = model_class.from_pretrained(tmp_path / "training")
            with torch.no_grad():
                outputs[auto_class_of(model_class)] = loaded(**inputs)[0]
        torch.save({"inputs": inputs, "outputs": outputs}, tmp_path / "expected.pt")
        assert len(run_script("without_fusible.py", tmp_path)) == 5 * len(self.model_classes)

    def test_repository_names_every_class(self, model_class, main_case, tmp_path):
        """Remote code needs the whole map, whichever class was saved, and only sibling files."""
        self.make_model(model_class, main_case, torch.float32).save_pretrained(tmp_path)
        auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
        names = {reference.split(".")[-1] for reference in auto_map.values()}
        assert names >= {cls.__name__ for cls in self.model_classes} | {model_class.config_class.__name__}
        for reference in auto_map.values():
            assert (tmp_path / f"{reference.split('.')[0]}.py").exists()
