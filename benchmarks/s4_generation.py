"""
How fast S4 writes beside GPT-2: python benchmarks/s4.py --mode generation

Tokens per second of a fused S4ForCausalLM and of transformers' GPT2LMHeadModel with the same number of
parameters, each with the largest batch (a power of two) whose weights and cache for the whole context fit into the
same memory. GPT-2's steps are measured at half the context, which is the mean of writing from the first token on; S4's
cost the same everywhere. Models take turns.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import Row, facts, print_table, save
from plot import draw
from transformers import Cache, DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel, StaticCache

from fusible import S4Config, S4ForCausalLM
from fusible.benchmark import median_seconds
from fusible.hub.form_facts import count_parameters
from fusible.kernels.loading import load_kernels


TOKENS = 8  # written for one measurement


@torch.no_grad()
def make_writers(width: int, blocks: int, context: int) -> dict[str, tuple[PreTrainedModel, Row]]:
    """
    GPT-2, and S4 with two state space layers and an FFN in place of each of its blocks, and facts about them.

    Parameters are those that are trained, without GPT-2's positions, of which S4 has none. S4's head is its own,
    GPT-2's is the embedding.
    """
    common = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_embd=width, n_layer=blocks, n_head=max(1, width // 64), n_positions=context, **common)
    )
    s4 = S4ForCausalLM(
        S4Config(
            vocab_size=256,
            hidden_size=width,
            num_hidden_layers=3 * blocks,
            layer_pattern=["s4", "s4", "ffn"],
            intermediate_size=4 * width - 64,  # what the state spaces have more than attention
        )
    )
    fused = s4.eval().fuse()
    return {
        "S4": (fused, {"parameters": count_parameters(s4)}),
        "GPT-2": (gpt2.eval(), {"parameters": count_parameters(gpt2) - gpt2.transformer.wpe.weight.numel()}),
    }


def s4_writer(model: PreTrainedModel, batch_size: int) -> tuple[Callable[[], None], int]:
    """A function that writes some tokens, and the bytes of its cache."""
    token = torch.zeros(batch_size, 1, dtype=torch.long)
    cache = model(input_ids=token, use_cache=True).cache

    def write() -> None:
        ids = token
        for _ in range(TOKENS):
            ids = model(input_ids=ids, cache=cache, use_cache=True).logits[:, -1:].argmax(-1)

    kept = zip(cache.layers, model.config.layer_types, strict=True)
    return write, sum(layer.recurrent_states[0].nbytes for layer, kind in kept if kind == "linear_attention")


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


@torch.no_grad()
def compare_generation(options: argparse.Namespace) -> None:
    file, rows = options.folder / "s4_generation_cpu.json", []
    for context in options.contexts:
        (s4, s4_facts), (gpt2, gpt2_facts) = make_writers(options.width, options.blocks, context).values()
        writers = {
            "S4, fused": (s4, s4_facts, partial(s4_writer, s4)),
            "GPT-2": (gpt2, gpt2_facts, partial(gpt2_writer, gpt2, context, False)),
            "GPT-2, static cache": (gpt2, gpt2_facts, partial(gpt2_writer, gpt2, context, True)),
        }
        for largest in (False, True):
            functions, found = [], []
            for name, (model, about, make) in writers.items():
                weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
                room = options.memory * 2**20 - weights
                batch_size = 1
                each = make(1)[1]
                if largest:
                    batch_size = min(options.max_batch, 2 ** int(math.log2(max(1, room // each))))
                function, _ = make(batch_size)
                functions.append(function)
                found.append((name, about, batch_size, weights, each))
            seconds = median_seconds(functions, options.repeats, warmup=1)
            for (name, about, batch_size, weights, each), value in zip(found, seconds, strict=True):
                row = {
                    "model": name,
                    "context": context,
                    "batch": "largest" if largest else "one",
                    "batch_size": batch_size,
                    "tokens_per_second": round(batch_size * TOKENS / value, 1),
                    "ms_per_step": round(1e3 * value / TOKENS, 2),
                    "cache_mb_per_sequence": round(each / 2**20, 3),
                    "memory_mb": round((weights + batch_size * each) / 2**20),
                    "memory_bound_mb": options.memory,
                    **about,
                    "kernels": load_kernels() is not None,
                    **facts("cpu"),
                }
                rows.append(row)
                save([row], file, ("model", "context", "batch", "device"))
            del functions, function
    print_table([{key: row[key] for key in list(row)[:10]} for row in rows])
    draw(file)
