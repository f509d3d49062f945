"""Writes mistral.safetensors and qwen2.safetensors: small models of random weights, a window of five tokens in the first, with their
outputs in float64 and what they write greedily.

usage: python make.py OUT_DIR      (torch 2.15.0, transformers 5.24.0)

The format is that of the cases beside this folder; config.json is in the metadata.
"""
import os, sys

import torch
import transformers as T
from safetensors.torch import save_file


def write(out_dir, name, model):
    for p in model.parameters():  # the default 0.02 spread makes every attention row nearly uniform
        p.data.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.data.mul_(8.0)
        p.data = p.data.float().double()
    lengths = torch.tensor([[11], [9], [8]])  # no row, padding included, has a window without a key
    mask = (torch.arange(11) < lengths).long()
    ids = torch.randint(3, 61, (3, 11)) * mask
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        text = model.generate(ids[:1], max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    tensors = {"in.input_ids": ids.int(), "in.attention_mask": mask.int(), "out.logits": out.logits.float(), "out.greedy_ids_row0": text.int()}
    tensors |= {f"out.hidden_{i}": hidden.float() for i, hidden in enumerate(out.hidden_states)}
    seen = set()
    for key, value in model.state_dict().items():  # tied weights are stored once
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            tensors["w." + key] = value.float()
    meta = {"suite": "huggingface", "op": type(model).__name__, "config": model.config.to_json_string(use_diff=False)}
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, os.path.join(out_dir, f"{name}.safetensors"), meta)


def main(out_dir):
    torch.manual_seed(5)
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, vocab_size=61,
                 max_position_embeddings=32, bos_token_id=0, eos_token_id=1, attn_implementation="eager")
    write(out_dir, "mistral", T.MistralForCausalLM(T.MistralConfig(sliding_window=5, **sizes)).eval().double())
    write(out_dir, "qwen2", T.Qwen2ForCausalLM(T.Qwen2Config(tie_word_embeddings=True, **sizes)).eval().double())


if __name__ == "__main__":
    main(sys.argv[1])
