"""The law, that both forms are one function, and what follows from it."""

import copy
import pickle

import pytest
import torch

from fusible import Fusible, fuse_

from .base import ModelTests, relative_error


class EquivalenceTests(ModelTests):
    def test_equivalence_in_float64(self, model_class, case):
        model = self.make_model(model_class, case)
        assert relative_error(self.output(model.fuse()), self.output(model)) < 1e-9

    def test_equivalence_in_float32(self, model_class, case):
        model = self.make_model(model_class, case, torch.float32)
        assert relative_error(self.output(model.fuse()), self.output(model)) < 1e-4

    def test_fusing_leaves_no_fusible_and_no_training_mode(self, model_class, case):
        model = self.make_model(model_class, case).train()
        fused = model.fuse()
        assert any(isinstance(module, Fusible) for module in model.modules())
        assert not any(isinstance(module, Fusible) for module in fused.modules())
        assert self.is_fused(fused) and not any(module.training for module in fused.modules())

    def test_fusing_leaves_the_model_as_it_was(self, model_class, case):
        model = self.make_model(model_class, case).train()
        before = copy.deepcopy(model)
        random_state = torch.get_rng_state()
        fused, sharing = model.fuse(), model.fuse(share=True)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert not model.config.fused and model.training
        assert [*model.state_dict()] == [*before.state_dict()]
        for name, tensor in before.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
        before, after = model.state_dict(), sharing.state_dict()
        shared = [name for name in before if self.name_in_fused(name) in after]
        assert shared
        for name in shared:
            assert after[self.name_in_fused(name)].data_ptr() == before[name].data_ptr(), name
        # the other one does not move when the model trains on
        expected = {name: tensor.clone() for name, tensor in fused.state_dict().items()}
        for tensor in before.values():
            tensor.zero_()
        for name, tensor in fused.state_dict().items():
            assert torch.equal(tensor, expected[name]), name

    def test_forms_have_different_names(self, model_class, main_case):
        """A checkpoint shows its form: what fusing changes has no name of the training form."""
        model = self.make_model(model_class, main_case)
        before = {self.name_in_fused(name): tensor for name, tensor in model.state_dict().items()}
        after = model.fuse().state_dict()
        for name in before.keys() & after.keys():
            assert torch.equal(before[name], after[name]), name
        assert after.keys() - before.keys()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_fusing_keeps_the_dtype(self, model_class, main_case, dtype):
        fused = self.make_model(model_class, main_case, dtype).fuse()
        assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
        assert fused.dtype == dtype

    def test_fusing_on_meta_gives_the_same_structure(self, model_class, case):
        config = self.make_config(case)
        with torch.device("meta"):
            on_meta = model_class(config).fuse()
        real = model_class(config).fuse()
        assert all(parameter.is_meta for parameter in on_meta.parameters())
        assert not any(tensor.is_meta for tensor in [*real.parameters(), *real.buffers()])
        assert {k: v.shape for k, v in on_meta.state_dict().items()} == {
            k: v.shape for k, v in real.state_dict().items()
        }

    def test_a_fused_config_builds_the_fused_form(self, model_class, main_case):
        config = self.make_config(main_case)
        config.fused = True
        built = model_class(config)
        assert not any(isinstance(module, Fusible) for module in built.modules())
        assert [*built.state_dict()] == [*model_class(self.make_config(main_case)).fuse().state_dict()]

    def test_fusing_twice_raises(self, model_class, main_case):
        fused = self.make_model(model_class, main_case).fuse()
        with pytest.raises(ValueError, match="fused already"):
            fused.fuse()
        with pytest.raises(ValueError, match="fused already"):
            fuse_(fused)

    def test_the_method_matters(self, model_class, main_case):
        """Otherwise both forms would be equal for a model that does nothing of what the paper says."""
        model = self.make_model(model_class, main_case)
        before = self.output(model)
        self.take_method_out(model)
        assert relative_error(self.output(model), before) > 1e-3

    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_and_pickles(self, model_class, main_case, fused, copied):
        """As `torch.save(model)`, joblib and processes that are spawned do."""
        model = self.make_model(model_class, main_case)
        model = model.fuse() if fused else model
        expected = self.output(model)
        again = copied(model)
        assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]
        assert not {id(module) for module in again.modules()} & {id(module) for module in model.modules()}
        assert torch.equal(self.output(again), expected)
