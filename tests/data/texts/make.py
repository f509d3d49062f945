"""Writes marian.safetensors and gpt2.safetensors: small models of random weights and what they write greedily under settings that ban and
force tokens, the second one behind prompts with padding in front.

usage: python make.py OUT_DIR      (torch 2.15.0, transformers 5.24.0)

The format is that of the cases beside this folder; the settings are in the config.json in the metadata.
"""
import json, os, sys

import torch
import transformers as T
from safetensors.torch import save_file


def write(out_dir, name, model, inputs, settings, new):
    config = json.loads(model.config.to_json_string(use_diff=False)) | settings
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    seen, tensors = set(), {f"in.{key}": value.int() for key, value in inputs.items()}
    for key, value in state.items():  # tied weights are stored once
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            tensors["w." + key] = value.float()
    with torch.no_grad():
        free = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, num_beams=1)
        text = model.generate(**inputs, **settings, max_new_tokens=new, min_new_tokens=new, do_sample=False, num_beams=1)
    assert not torch.equal(free, text), f"settings that change nothing: {free.tolist()}"
    tensors["out.greedy_ids"] = text.int()
    meta = {"suite": "huggingface", "op": type(model).__name__, "config": json.dumps(config)}
    save_file(tensors, os.path.join(out_dir, f"{name}.safetensors"), meta)


def spread(model):
    for name, p in model.named_parameters():  # the default 0.02 spread makes every attention row nearly uniform
        p.data.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.data.mul_(40.0 if "encoder_attn" in name else 12.0)
        p.data = p.data.float().double()
    return model


def main(out_dir):
    torch.manual_seed(3)
    lengths = torch.tensor([[7], [4], [5]])
    ids = torch.randint(4, 29, (3, 7))
    sizes = dict(d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3, decoder_attention_heads=3,
                 encoder_ffn_dim=20, decoder_ffn_dim=20, vocab_size=29, max_position_embeddings=32)
    config = T.MarianConfig(pad_token_id=0, decoder_start_token_id=0, eos_token_id=1, forced_eos_token_id=1, scale_embedding=True,
                            **sizes)
    config._attn_implementation = "eager"
    mask = (torch.arange(7) < lengths).long()
    settings = dict(forced_bos_token_id=5, bad_words_ids=[[0], [1], [MARIAN_BAD]], suppress_tokens=[MARIAN_SUPPRESSED])
    write(out_dir, "marian", spread(T.MarianMTModel(config).eval().double()), dict(input_ids=ids * mask, attention_mask=mask), settings, 12)

    config = T.GPT2Config(n_embd=12, n_layer=2, n_head=3, n_inner=20, n_positions=32, vocab_size=29, bos_token_id=0, eos_token_id=1,
                          pad_token_id=0)
    config._attn_implementation = "eager"
    mask = mask.flip(1)
    settings = dict(bad_words_ids=[[GPT2_BAD]], suppress_tokens=[GPT2_SUPPRESSED])
    write(out_dir, "gpt2", spread(T.GPT2LMHeadModel(config).eval().double()), dict(input_ids=ids * mask, attention_mask=mask), settings, 12)


MARIAN_BAD, MARIAN_SUPPRESSED, GPT2_BAD, GPT2_SUPPRESSED = 24, 9, 28, 15

if __name__ == "__main__":
    main(sys.argv[1])
