"""
How fast S4 writes beside other models: python benchmarks/s4.py --mode generation

Tokens per second of fused S4 models in both modes, of transformers' Mamba and Mamba-2 in plain torch, and of GPT-2,
with about the same number of parameters: one text, and (without the Mambas) the largest batch, a power of two, whose
weights and states or cache for the whole context fit into the same memory. GPT-2's steps are measured at half the
context, which is the mean of writing from the first token on; the others cost the same everywhere. And the time from a
prompt to the first token. Models take turns.
"""

import argparse
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import Row, facts, print_table, save
from plot import draw
from transformers import (
    Cache,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    StaticCache,
)

from fusible import S4Config, S4ForCausalLM
from fusible.benchmark import median_seconds
from fusible.hub.form_facts import count_parameters
from fusible.kernels.loading import load_kernels


TOKENS = 8  # written for one measurement


@torch.no_grad()
def make_writers(width: int, blocks: int, context: int) -> dict[str, tuple[PreTrainedModel, Row]]:
    """
    GPT-2, Mamba with two layers for each of its blocks, and S4 layers of twice the width; and facts about them.

    Parameters are those that are read for a token, without GPT-2's positions, of which the others have none: S4's are
    those of the inference form. S4's head is its own, the others' is the embedding.
    """
    common = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    # a block has 12 width^2 parameters, a layer 2 (2 width)^2, and 325 or 195 (S4D) for each of its state spaces
    layers = max(1, round(12 * width * blocks / (8 * width + 2 * 260)))
    options = {"hidden_size": 2 * width, "num_hidden_layers": layers}
    mamba = {"hidden_size": width, "num_hidden_layers": 2 * blocks, "tie_word_embeddings": True, **common}
    heads = max(1, width // 64)
    models: dict[str, PreTrainedModel] = {
        "S4, fused": S4ForCausalLM(S4Config(vocab_size=256, **options)),
        "S4D, fused": S4ForCausalLM(S4Config(vocab_size=256, mode="diag", **options)),
        "Mamba": MambaForCausalLM(MambaConfig(**mamba)),
        "Mamba-2": Mamba2ForCausalLM(
            Mamba2Config(num_heads=2 * heads, head_dim=width // heads, n_groups=1, state_size=64, **mamba)
        ),
        "GPT-2": GPT2LMHeadModel(
            GPT2Config(n_embd=width, n_layer=blocks, n_head=heads, n_positions=context, **common)
        ),
    }
    found = {}
    for name, model in models.items():
        runs = model.eval().fuse() if isinstance(model, S4ForCausalLM) else model.eval()
        positions = model.transformer.wpe.weight.numel() if isinstance(model, GPT2LMHeadModel) else 0
        found[name] = (runs, {"parameters": count_parameters(runs) - positions})
    return found


def state_writer(model: PreTrainedModel, batch_size: int) -> tuple[Callable[[], None], int]:
    """A function that writes some tokens, and the bytes of its states."""
    token = torch.zeros(batch_size, 1, dtype=torch.long)
    # its name in transformers from 5.24 on, and before
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "cache_params"
    cache = model(input_ids=token, use_cache=True)[name]

    def write() -> None:
        ids = token
        for _ in range(TOKENS):
            ids = model(input_ids=ids, use_cache=True, **{name: cache}).logits[:, -1:].argmax(-1)

    # S4's FFNs have none
    kept = [layer for layer in cache.layers if layer.is_recurrent_states_initialized[0]]
    states = [part[0] for layer in kept for part in (layer.recurrent_states, layer.conv_states)]
    return write, sum(state.nbytes for state in states if state is not None)


def gpt2_writer(model: PreTrainedModel, context: int, static: bool, batch_size: int) -> tuple[Callable[[], None], int]:
    """Likewise, from the middle of the context on; a cache of fixed size, or one that grows."""
    config: Any = model.config
    past = context // 2
    cache: Cache = StaticCache(config=config, max_cache_len=context) if static else DynamicCache(config=config)
    shape = (batch_size, config.n_head, past, config.n_embd // config.n_head)
    for layer in range(config.n_layer):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    token = torch.zeros(batch_size, 1, dtype=torch.long)

    def write() -> None:
        ids = token
        for _ in range(TOKENS):
            ids = model(ids, cache, use_cache=True).logits[:, -1:].argmax(-1)
        if static:
            for layer in cache.layers:
                layer.cumulative_length.fill_(past)
        else:
            cache.crop(-TOKENS)

    return write, 4 * 2 * config.n_layer * batch_size * context * config.n_embd


def first_token(model: PreTrainedModel, length: int) -> Callable[[], Any]:
    """A function that reads a prompt and chooses the token that follows."""
    prompt = torch.zeros(1, length, dtype=torch.long)
    return lambda: model(input_ids=prompt, use_cache=True).logits[:, -1:].argmax(-1)


@torch.no_grad()
def compare_generation(options: argparse.Namespace) -> None:
    file, rows = options.folder / "s4_generation_cpu.json", []
    about = {"memory_bound_mb": options.memory, "kernels": load_kernels() is not None, **facts("cpu")}

    def keep(found: list[Row]) -> None:
        rows.extend(row | about for row in found)
        save(rows[-len(found) :], file, ("model", "context", "batch", "device"))

    for context in options.contexts:
        models = make_writers(options.width, options.blocks, context)
        *recurrent, _ = models
        writers = {name: (*models[name], partial(state_writer, models[name][0])) for name in recurrent}
        for name, static in (("GPT-2", False), ("GPT-2, static cache", True)):
            writers[name] = (*models["GPT-2"], partial(gpt2_writer, models["GPT-2"][0], context, static))
        for largest in (False, True):
            functions, found = [], []
            for name, (model, known, make) in writers.items():
                if largest and "Mamba" in name:  # whose steps in plain torch take many seconds then
                    continue
                weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
                room = options.memory * 2**20 - weights
                batch_size = 1
                each = make(1)[1]
                if largest:
                    batch_size = min(options.max_batch, 2 ** int(math.log2(max(1, room // each))))
                function, _ = make(batch_size)
                functions.append(function)
                found.append(
                    {
                        "model": name,
                        "context": context,
                        "batch": "largest" if largest else "one",
                        "batch_size": batch_size,
                        "cache_mb_per_sequence": round(each / 2**20, 3),
                        "memory_mb": round((weights + batch_size * each) / 2**20),
                        **known,
                    }
                )
            # steps of many texts take seconds, and vary less
            repeats, warmup = (min(2, options.repeats), 0) if largest else (options.repeats, 1)
            for row, value in zip(found, median_seconds(functions, repeats, warmup=warmup), strict=True):
                row["tokens_per_second"] = round(row["batch_size"] * TOKENS / value, 1)
                row["ms_per_step"] = round(1e3 * value / TOKENS, 2)
            keep(found)
            del functions, function
    for length in options.prompts:
        models = make_writers(options.width, options.blocks, length)
        functions = [first_token(model, length) for model, _ in models.values()]
        # seconds each where there is a loop in Python over the positions
        seconds = median_seconds(functions, min(2, options.repeats), warmup=0)
        keep(
            [
                {"model": name, "context": length, "batch": "prompt", "batch_size": 1, **known}
                | {"ms_to_first_token": round(1e3 * value, 1)}
                for (name, (_, known)), value in zip(models.items(), seconds, strict=True)
            ]
        )
    columns = ("model", "context", "batch", "batch_size", "parameters", "tokens_per_second", "ms_per_step")
    print_table([{key: row.get(key) for key in (*columns, "ms_to_first_token")} for row in rows])
    draw(file)
