"""Writes small models of random weights with their outputs in float64 and what they write greedily: mistral.safetensors, with a window of
five tokens, qwen2.safetensors, t5.safetensors, t5_gated.safetensors (T5 1.1) and mt5.safetensors, these with texts beyond the furthest distance that they tell apart.

usage: python make.py OUT_DIR      (torch 2.15.0, transformers 5.24.0)

The format is that of the cases beside this folder; config.json is in the metadata.
"""
import os, sys

import torch
import transformers as T
from safetensors.torch import save_file


def save(out_dir, name, model, tensors):
    seen = set()
    for key, value in model.state_dict().items():  # tied weights are stored once
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            tensors["w." + key] = value
    tensors = {key: value.float() if value.is_floating_point() else value.int() for key, value in tensors.items()}
    meta = {"suite": "huggingface", "op": type(model).__name__, "config": model.config.to_json_string(use_diff=False)}
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, os.path.join(out_dir, f"{name}.safetensors"), meta)


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
    tensors = {"in.input_ids": ids, "in.attention_mask": mask, "out.logits": out.logits, "out.greedy_ids_row0": text}
    tensors |= {f"out.hidden_{i}": hidden for i, hidden in enumerate(out.hidden_states)}
    save(out_dir, name, model, tensors)


def write_t5(out_dir, name, model):
    for key, p in model.named_parameters():  # biases of distances, and a source, that show in what is attended to
        factor = 12.0 if "relative_attention_bias" in key else 2.0 if "Attention" in key else 1.0
        p.data = (p.data * factor + (0.1 * torch.randn_like(p) if p.dim() == 1 else 0.0)).float().double()
    mask = (torch.arange(19) < torch.tensor([[19], [14], [6]])).long()
    ids, target = torch.randint(3, 61, (3, 19)) * mask, torch.randint(3, 61, (3, 15))
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, decoder_input_ids=target, output_hidden_states=True, output_attentions=True)
        texts = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, do_sample=False, num_beams=1)
    tensors = {"in.input_ids": ids, "in.attention_mask": mask, "in.decoder_input_ids": target, "out.logits": out.logits, "out.greedy_ids": texts}
    for prefix, values in [("encoder_hidden", out.encoder_hidden_states), ("encoder_attention", out.encoder_attentions),
                           ("decoder_hidden", out.decoder_hidden_states), ("decoder_attention", out.decoder_attentions),
                           ("cross_attention", out.cross_attentions)]:
        tensors |= {f"out.{prefix}_{i}": value for i, value in enumerate(values)}
    save(out_dir, name, model, tensors)


def main(out_dir):
    torch.manual_seed(5)
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, vocab_size=61,
                 max_position_embeddings=32, bos_token_id=0, eos_token_id=1, attn_implementation="eager")
    write(out_dir, "mistral", T.MistralForCausalLM(T.MistralConfig(sliding_window=5, **sizes)).eval().double())
    write(out_dir, "qwen2", T.Qwen2ForCausalLM(T.Qwen2Config(tie_word_embeddings=True, **sizes)).eval().double())
    # Heads together wider than the model, and stacks of different depth.
    sizes = dict(d_model=24, d_kv=10, num_heads=3, d_ff=40, num_layers=2, vocab_size=61, relative_attention_num_buckets=8,
                 relative_attention_max_distance=11, decoder_start_token_id=0, attn_implementation="eager")
    write_t5(out_dir, "t5", T.T5ForConditionalGeneration(T.T5Config(num_decoder_layers=1, **sizes)).eval().double())
    gated = T.T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes)
    model = T.T5ForConditionalGeneration(gated).eval().double()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 5)  # as in published ones
    write_t5(out_dir, "t5_gated", model)
    write_t5(out_dir, "mt5", T.MT5ForConditionalGeneration(T.MT5Config(**sizes)).eval().double())


if __name__ == "__main__":
    main(sys.argv[1])
