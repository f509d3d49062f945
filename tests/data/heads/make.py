"""Writes sequence.safetensors, token.safetensors and answer.safetensors: small BERTs of random weights with each head that BERT is
fine-tuned with, and what those, the encoder and the pooler say about padded batches.

usage: python make.py OUT_DIR      (torch 2.15.0, transformers 5.24.0)

The format is that of the cases beside this folder: weights under "w.", config.json in the metadata, outputs computed in f64.
"""
import os, sys

import torch
import transformers as T
from safetensors.torch import save_file

HEADS = {
    "sequence": (T.BertForSequenceClassification, 5, ["logits"]),
    "token": (T.BertForTokenClassification, 3, ["logits"]),
    "answer": (T.BertForQuestionAnswering, 2, ["start_logits", "end_logits"]),
}


def main(out_dir):
    for seed, (name, (cls, labels, outputs)) in enumerate(HEADS.items()):
        torch.manual_seed(seed)
        config = T.BertConfig(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, vocab_size=23,
                              max_position_embeddings=12, num_labels=labels)
        config._attn_implementation = "eager"
        model = cls(config).eval().double()
        for p in model.parameters():  # the default 0.02 spread makes attention uniform, and biases of 0 hide a missing one
            p.data.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.data.mul_(6.0)
            p.data = p.data.float().double()
        ids = torch.randint(1, 23, (3, 9))
        mask = (torch.arange(9) < torch.tensor([[9], [6], [1]])).long()
        types = (torch.arange(9) >= 4).long().expand(3, 9).contiguous()
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        tensors = {"in.input_ids": ids.int(), "in.attention_mask": mask.int(), "in.token_type_ids": types.int()}
        tensors |= {f"out.{key}": getattr(found, key).float().contiguous() for key in outputs}
        if model.bert.pooler:
            with torch.no_grad():
                encoded = model.bert(input_ids=ids, attention_mask=mask, token_type_ids=types)
            tensors |= {"out.pooled": encoded.pooler_output.float(), "out.last_hidden": encoded.last_hidden_state.float()}
        tensors |= {f"w.{key}": value.float() for key, value in model.state_dict().items() if value.is_floating_point()}
        meta = {"suite": "huggingface", "op": cls.__name__, "config": config.to_json_string()}
        save_file(tensors, os.path.join(out_dir, f"{name}.safetensors"), meta)


if __name__ == "__main__":
    main(sys.argv[1])
