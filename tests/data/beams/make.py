"""Writes marian.safetensors and bart.safetensors: small models of random weights and what beam search finds with them.

usage: python make.py OUT_DIR      (torch 2.15.0, transformers 5.23.0)

Weights have their checkpoint names under "w.", the config.json is in the metadata. "in.input_ids" (B, S) and "in.attention_mask" are
padded sources. The metadata's "settings" is a JSON list of generation settings, each a generation_config.json; number i has the ids
"out.I.ids" (B * num_return_sequences, T), padded, the start token in front, and for more than one beam their scores "out.I.scores".
"""
import json, os, sys, warnings

import torch
import transformers as T
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
VOCABULARY, START, END, PAD = 47, 3, 1, 3

SETTINGS = [
    dict(num_beams=1),
    dict(num_beams=2),
    dict(num_beams=5),
    dict(num_beams=16),
    dict(num_beams=16, num_return_sequences=16, length_penalty=0.0, early_stopping="never"),
    dict(num_beams=5, num_return_sequences=5, length_penalty=2.0),
    dict(num_beams=5, num_return_sequences=3, length_penalty=-1.0),
    dict(num_beams=5, num_return_sequences=2, early_stopping=True),
    dict(num_beams=4, early_stopping="never", length_penalty=0.6),
    dict(num_beams=4, length_penalty=1.5, early_stopping="never", num_return_sequences=4),
    dict(num_beams=6, bad_words_ids=[[PAD]], forced_eos_token_id=END, renormalize_logits=True, num_return_sequences=2),
    dict(num_beams=4, bad_words_ids=[[PAD], [7], [9, 11], [5, 4, 8]], num_return_sequences=4),
    dict(num_beams=3, no_repeat_ngram_size=2, num_return_sequences=3, length_penalty=2.0),
    dict(num_beams=3, no_repeat_ngram_size=1, num_return_sequences=3, renormalize_logits=True),
    dict(num_beams=4, min_length=6, no_repeat_ngram_size=3, early_stopping=True, num_return_sequences=4),
    dict(num_beams=4, forced_bos_token_id=5, forced_eos_token_id=END, num_return_sequences=4, length_penalty=2.0),
    dict(num_beams=3, max_new_tokens=4, suppress_tokens=[12, 13], num_return_sequences=3),
    dict(num_beams=2, max_length=2, num_return_sequences=2),
]


def models():
    common = dict(vocab_size=VOCABULARY, max_position_embeddings=32, d_model=16, encoder_layers=1, decoder_layers=2,
                  encoder_attention_heads=2, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=20,
                  pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=START, forced_eos_token_id=None)
    yield "marian", T.MarianMTModel, T.MarianConfig(scale_embedding=True, activation_function="swish", **common), 6
    yield "bart", T.BartForConditionalGeneration, T.BartConfig(bos_token_id=2, **common), 0


def random_model(cls, config, seed):
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = cls(config).eval().double()
    for k, p in model.named_parameters():
        if p.dim() == 1:
            p.data.add_(0.1 * torch.randn_like(p))
        elif "encoder_attn.q" in k or "encoder_attn.k" in k:  # a decoder must choose where in its source it looks
            p.data.mul_(40.0)
        elif p.requires_grad:  # computed positions are as large as they are
            p.data.mul_(12.0)
    model.final_logits_bias.normal_(0.0, 0.3)
    model.final_logits_bias[0, END] += 1.2
    return model


def main(out_dir):
    ids = torch.randint(4, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate([7, 3, 5, 1]):
        mask[row, length:] = 0
    ids[mask == 0] = PAD
    for name, cls, config, seed in models():
        model = random_model(cls, config, seed)
        tensors = {"in.input_ids": ids.int(), "in.attention_mask": mask.int()}
        settings = [dict(max_length=12, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=START) | s for s in SETTINGS]
        for i, s in enumerate(settings):
            s = dict(s)
            if "max_new_tokens" in s:
                del s["max_length"]
            rules = T.GenerationConfig(do_sample=False, return_dict_in_generate=True, output_scores=True, **s)
            with torch.no_grad():
                made = model.generate(input_ids=ids, attention_mask=mask, generation_config=rules)
            tensors[f"out.{i}.ids"] = made.sequences.int()
            if s["num_beams"] > 1:
                tensors[f"out.{i}.scores"] = made.sequences_scores.float()
            print(name, i, made.sequences.tolist()[:3], [round(x, 3) for x in tensors.get(f"out.{i}.scores", torch.zeros(0)).tolist()[:3]])
        seen = {}
        for k, v in model.state_dict().items():  # tied weights are stored once
            if v.is_floating_point() and v.data_ptr() not in seen:
                seen[v.data_ptr()] = k
                tensors["w." + k] = v.float()
        tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
        meta = {"config": config.to_json_string(use_diff=False), "settings": json.dumps(settings)}
        save_file(tensors, os.path.join(out_dir, f"{name}.safetensors"), meta)


if __name__ == "__main__":
    main(sys.argv[1])
