"""Train a small 2017-style encoder-decoder Transformer that reads English dates.

    "the 3rd of May, 1979"  ->  "1979-05-03"

Command:   python3 train.py --out dates.safetensors --cases cases.json
Re-check:  python3 train.py --evaluate dates.safetensors

The run with the defaults (seed 1, 9000 steps of 128 strings, torch 2.15.0)
took 20.6 minutes on one core of an AMD EPYC.  936,320 parameters, 1.88 MB.
Held-out exact match: 99.996 % of 50,000 strings, 1,000 of each of 50 forms
(46,100 distinct strings, 3,692 dates).

    without a typing error    45,429    100.000 %
    with a typing error        4,571     99.956 %
    worst forms: "nth month 'yy" and "the word of month year", 99.9 % each;
    every other form 100 %

Only dates are held out: all forms, and most mistyped words, occur in training
(where 25 % of the months are mistyped; 15 % in the test).  A form that is not
in the table may fail: "on 1979-05-03" always does, and 3/May/1979 in 30 %.

Needs torch, numpy and safetensors.  Both sides are characters.  The data are
drawn on the fly from the table FORMS; nothing is downloaded.

What a string means
  * slashes with the year last are month first:  05/03/1979 is 3 May
  * dots with the year last are day first:       03.05.1979 is 3 May
  * two-digit years mean 1950..2049; all other years are 1900..2099
  * weekdays are right for the date, and carry no further information
  * a month name may hold one typing error, never one that brings it as near
    to another month as to its own

Held out: a date whose CRC-32 is divisible by 20 never occurs in training, in
any form.  The accuracy is exact match of the greedy output on such dates,
with the weights rounded to float16 as saved and float32 arithmetic.
"""

import argparse
import datetime
import functools
import json
import math
import os
import random
import re
import string
import time
import zlib

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

# ---------------------------------------------------------------- the strings

# {d} 3     {dd} 03    {do} 3rd   {dw} third         {m} 5       {mm} 05
# {month} May, with typing errors    {mon} May, Sep, Sept    {mon.} Sep., Sept.
# {y} 1979  {yy} 79    {day} Thursday, with typing errors    {dy} Thu
FORMS = {
    # day, month, year
    "day month year": "{d} {month} {y}",
    "padded-day month year": "{dd} {month} {y}",
    "day month, year": "{d} {month}, {y}",
    "day. month year": "{d}. {month} {y}",
    "day of month year": "{d} of {month} {y}",
    "day-month-year": "{d}-{month}-{y}",
    "nth month year": "{do} {month} {y}",
    "nth of month year": "{do} of {month} {y}",
    "the nth of month year": "the {do} of {month} {y}",
    "the nth of month, year": "the {do} of {month}, {y}",
    "nth month 'yy": "{do} {month} '{yy}",
    # month, day, year
    "month day year": "{month} {d} {y}",
    "month day, year": "{month} {d}, {y}",
    "month day, 'yy": "{month} {d}, '{yy}",
    "month nth, year": "{month} {do}, {y}",
    "month the nth, year": "{month} the {do}, {y}",
    # year first
    "year month day": "{y} {month} {d}",
    "year, month day": "{y}, {month} {d}",
    "year-mon-dd": "{y}-{mon}-{dd}",
    # ordinals in words
    "word of month year": "{dw} of {month} {y}",
    "the word of month year": "the {dw} of {month} {y}",
    "the word of month, year": "the {dw} of {month}, {y}",
    "month word, year": "{month} {dw}, {y}",
    "month the word, year": "{month} the {dw}, {y}",
    # abbreviated months
    "day mon year": "{d} {mon} {y}",
    "day mon. year": "{d} {mon.} {y}",
    "mon day, year": "{mon} {d}, {y}",
    "mon. day, year": "{mon.} {d}, {y}",
    "day-mon-year": "{d}-{mon}-{y}",
    "dd-mon-yy": "{dd}-{mon}-{yy}",
    # with a weekday
    "weekday, day month year": "{day}, {d} {month} {y}",
    "weekday day month year": "{day} {d} {month} {y}",
    "weekday, month day, year": "{day}, {month} {d}, {y}",
    "weekday, the nth of month, year": "{day}, the {do} of {month}, {y}",
    "wkd, dd mon year": "{dy}, {dd} {mon} {y}",
    "wkd day month yy": "{dy} {d} {month} {yy}",
    # with "on"
    "on day month year": "on {d} {month} {y}",
    "on the nth of month, year": "on the {do} of {month}, {y}",
    "on the word of month year": "on the {dw} of {month} {y}",
    "on weekday, month nth, year": "on {day}, {month} {do}, {y}",
    # digits only
    "yyyy-mm-dd": "{y}-{mm}-{dd}",
    "yyyy/mm/dd": "{y}/{mm}/{dd}",
    "yyyy.mm.dd": "{y}.{mm}.{dd}",
    "yyyymmdd": "{y}{mm}{dd}",
    "mm/dd/yyyy": "{mm}/{dd}/{y}",
    "m/d/yyyy": "{m}/{d}/{y}",
    "m/d/yy": "{m}/{d}/{yy}",
    "dd.mm.yyyy": "{dd}.{mm}.{y}",
    "d.m.yyyy": "{d}.{m}.{y}",
    "d.m.yy": "{d}.{m}.{yy}",
}

MONTHS = ("January February March April May June July August September "
          "October November December").split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ABBREVIATIONS = [[m[:3]] for m in MONTHS]
ABBREVIATIONS[8] = ["Sep", "Sept"]
ONES = "first second third fourth fifth sixth seventh eighth ninth".split()
ORDINALS = ONES + ("tenth eleventh twelfth thirteenth fourteenth fifteenth "
                   "sixteenth seventeenth eighteenth nineteenth twentieth").split()
ORDINALS += ["twenty-" + w for w in ONES] + ["thirtieth", "thirty-first"]
SPELLINGS = [[w.lower() for w in [m, *a]] for m, a in zip(MONTHS, ABBREVIATIONS)]

MONTH_TYPO = 0.15    # of the month names of four letters or more
WEEKDAY_TYPO = 0.05  # of the weekday names
CASES = ["as is", "lower", "upper", "title", "sentence"]
CASE_WEIGHTS = [60, 14, 14, 6, 6]
MAX_SOURCE = 40
MAX_TARGET = 12      # <bos>, ten characters, <eos>

PAD, BOS, EOS = 0, 1, 2
SOURCE = ["<pad>"] + sorted(string.ascii_letters + string.digits + " ,./-'")
TARGET = ["<pad>", "<bos>", "<eos>", "-"] + list(string.digits)


def distance(a, b):
    """Damerau-Levenshtein distance (neighbours swapped count as one edit)."""
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            best = min(rows[-1][j] + 1, row[-1] + 1,
                       rows[-1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


@functools.lru_cache(maxsize=None)
def determined(word, month):
    """Whether word is nearer to a spelling of this month than to any other's."""
    near = [min(distance(word, s) for s in group) for group in SPELLINGS]
    return near[month] < min(near[:month] + near[month + 1:])


def edit(rng, word):
    """One random typing error; may by chance return the word unchanged."""
    i = rng.randrange(len(word))
    kind = rng.randrange(4)
    if kind == 0:  # swap two neighbours
        i = min(i, len(word) - 2)
        return word[:i] + word[i + 1] + word[i] + word[i + 2:]
    if kind == 1:  # drop
        return word[:i] + word[i + 1:]
    if kind == 2:  # double
        return word[:i] + word[i] + word[i:]
    return word[:i] + rng.choice(string.ascii_lowercase) + word[i + 1:]


def mistyped_month(rng, month):
    name = MONTHS[month].lower()
    while True:
        word = edit(rng, name)
        if word != name and determined(word, month):
            return word.capitalize()


def recase(rng, text):
    case = rng.choices(CASES, CASE_WEIGHTS)[0]
    if case == "lower":
        return text.lower()
    if case == "upper":
        return text.upper()
    if case == "title":
        return re.sub(r"\b[a-z]", lambda c: c[0].upper(), text)
    if case == "sentence":
        return text[0].upper() + text[1:]
    return text


def suffix(day):
    return "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def held_out(date):
    return zlib.crc32(date.isoformat().encode()) % 20 == 0


LONG_YEARS = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
SHORT_YEARS = datetime.date(1950, 1, 1).toordinal(), datetime.date(2049, 12, 31).toordinal()
TEMPLATES = {name: re.split(r"\{([a-z.]+)\}", form) for name, form in FORMS.items()}


def draw(rng, form, test, month_typo=MONTH_TYPO):
    """A (string, ISO date, has a typing error) in the given form."""
    parts = TEMPLATES[form]
    while True:
        date = datetime.date.fromordinal(rng.randint(*(SHORT_YEARS if "yy" in parts else LONG_YEARS)))
        if held_out(date) == test:
            break
    d, m, y = date.day, date.month - 1, date.year
    typo = False
    out = []
    for i, part in enumerate(parts):
        if i % 2 == 0:
            out.append(part)
        elif part == "d":
            out.append(str(d))
        elif part == "dd":
            out.append(f"{d:02}")
        elif part == "do":
            out.append(f"{d}{suffix(d)}")
        elif part == "dw":
            out.append(ORDINALS[d - 1])
        elif part == "m":
            out.append(str(m + 1))
        elif part == "mm":
            out.append(f"{m + 1:02}")
        elif part == "month":
            word = MONTHS[m]
            if len(word) >= 4 and rng.random() < month_typo:
                word, typo = mistyped_month(rng, m), True
            out.append(word)
        elif part == "mon":
            out.append(rng.choice(ABBREVIATIONS[m]))
        elif part == "mon.":
            out.append(rng.choice(ABBREVIATIONS[m]) + ".")
        elif part == "y":
            out.append(str(y))
        elif part == "yy":
            out.append(f"{y % 100:02}")
        elif part == "day":
            word = WEEKDAYS[date.weekday()]
            if rng.random() < WEEKDAY_TYPO:
                word = edit(rng, word.lower()).capitalize()
                typo |= word != WEEKDAYS[date.weekday()]
            out.append(word)
        elif part == "dy":
            out.append(WEEKDAYS[date.weekday()][:3])
        else:
            raise ValueError(part)
    return recase(rng, "".join(out)), date.isoformat(), typo


# ---------------------------------------------------------------- the tensors

SOURCE_ID = np.zeros(128, np.int64)
SOURCE_ID[[ord(c) for c in SOURCE[1:]]] = range(1, len(SOURCE))
TARGET_ID = np.zeros(128, np.int64)
TARGET_ID[[ord(c) for c in TARGET[3:]]] = range(3, len(TARGET))


def encode_sources(texts):
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in zip(ids, texts):
        row[:len(text)] = SOURCE_ID[np.frombuffer(text.encode("ascii"), np.uint8)]
    assert ids.shape[1] <= MAX_SOURCE
    return torch.from_numpy(ids)


def encode_targets(dates):
    ids = np.full((len(dates), MAX_TARGET), BOS, np.int64)
    for row, date in zip(ids, dates):
        row[1:-1] = TARGET_ID[np.frombuffer(date.encode("ascii"), np.uint8)]
    ids[:, -1] = EOS
    return torch.from_numpy(ids)


def batches(rng, size, month_typo):
    """Endless training batches, of strings of about the same length."""
    names = list(FORMS)
    while True:
        rows = [draw(rng, rng.choice(names), False, month_typo) for _ in range(32 * size)]
        rows.sort(key=lambda row: len(row[0]))
        chunks = [rows[i:i + size] for i in range(0, len(rows), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield encode_sources([r[0] for r in chunk]), encode_targets([r[1] for r in chunk])


# ------------------------------------------------------------------ the model

CONFIG = {
    "d_model": 128,
    "n_heads": 4,
    "d_ff": 512,
    "n_encoder_layers": 2,
    "n_decoder_layers": 2,
    "layer_norm_eps": 1e-5,
    "max_source": MAX_SOURCE,
    "max_target": MAX_TARGET,
    "activation": "relu",
    "norm": "post",
    "positions": "sinusoidal interleaved",
}


class Transformer(nn.Module):
    """Vaswani et al. 2017: post-norm, no norm after the stacks, tied output."""

    def __init__(self, dropout=0.0):
        super().__init__()
        width, c = CONFIG["d_model"], CONFIG
        shape = dict(d_model=width, nhead=c["n_heads"], dim_feedforward=c["d_ff"],
                     dropout=dropout, activation="relu", layer_norm_eps=c["layer_norm_eps"],
                     batch_first=True, norm_first=False)
        self.src_embed = nn.Embedding(len(SOURCE), width)
        self.tgt_embed = nn.Embedding(len(TARGET), width)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**shape), c["n_encoder_layers"], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**shape), c["n_decoder_layers"])
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        for table in (self.src_embed, self.tgt_embed):
            nn.init.normal_(table.weight, std=width ** -0.5)

        # P(pos, 2i) = sin(pos / 10000^(2i / width)), P(pos, 2i + 1) = cos(the same)
        pos = torch.arange(max(MAX_SOURCE, MAX_TARGET), dtype=torch.float64)[:, None]
        angle = pos / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        table = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).float()
        self.register_buffer("positions", table, persistent=False)

    def embed(self, table, ids):
        return table(ids) * math.sqrt(CONFIG["d_model"]) + self.positions[:ids.shape[1]]

    def encode(self, src):
        return self.encoder(self.embed(self.src_embed, src), src_key_padding_mask=src == PAD)

    def decode(self, tgt, memory, src):
        n = tgt.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).triu(1)
        h = self.decoder(self.embed(self.tgt_embed, tgt), memory, tgt_mask=causal,
                         tgt_is_causal=True, memory_key_padding_mask=src == PAD)
        return h @ self.tgt_embed.weight.T

    def forward(self, src, tgt):
        return self.decode(tgt, self.encode(src), src)


@torch.inference_mode()
def translate(model, texts, size=500):
    """Greedy decoding, to <eos> or the longest target."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [""] * len(texts)
    for start in range(0, len(order), size):
        index = order[start:start + size]
        src = encode_sources([texts[i] for i in index])
        memory = model.encode(src)
        ids = torch.full((len(index), 1), BOS)
        for _ in range(MAX_TARGET - 1):
            ids = torch.cat([ids, model.decode(ids, memory, src)[:, -1:].argmax(-1)], 1)
        for i, row in zip(index, ids[:, 1:].tolist()):
            # without an <eos> the output cannot equal a date
            out[i] = "".join(TARGET[t] for t in (row[:row.index(EOS)] if EOS in row else row))
    return out


# ------------------------------------------------------- training and testing

def test_rows(seed, per_form):
    """Held-out (form, string, date, has a typing error), as many of each form."""
    rng = random.Random(f"test {seed}")
    return [(name, *draw(rng, name, True)) for name in FORMS for _ in range(per_form)]


def evaluate(model, rows):
    """The share of exact matches, and the outputs."""
    out = translate(model, [row[1] for row in rows])
    return sum(o == row[2] for o, row in zip(out, rows)) / len(rows), out


def report(rows, out):
    def line(name, pick):
        hits = [o == row[2] for o, row in zip(out, rows) if pick(row)]
        print(f"{name:34} {len(hits):6} {100 * sum(hits) / len(hits):9.3f} %")
    print(f"{'form':34} {'strings':>7} {'exact match':>12}")
    for name in FORMS:
        line(name, lambda row: row[0] == name)
    line("all without a typing error", lambda row: not row[3])
    line("all with a typing error", lambda row: row[3])
    line("all", lambda row: True)
    wrong = [f"  {row[1]!r}: {o} for {row[2]}" for o, row in zip(out, rows) if o != row[2]]
    print("some of the errors:", *wrong[:25], sep="\n")


def rounded(model):
    """The weights as saved, and a model that holds exactly these."""
    weights = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    copy = Transformer()
    copy.load_state_dict({k: v.float() for k, v in weights.items()})
    return weights, copy.eval()


def export(path, weights, seed, steps, strings, accuracy):
    metadata = {
        "config": json.dumps(CONFIG),
        "source_vocabulary": json.dumps(SOURCE),
        "target_vocabulary": json.dumps(TARGET),
        "seed": str(seed),
        "steps": str(steps),
        "held_out_strings": str(strings),
        "held_out_exact_match": f"{accuracy:.6f}",
        "torch": torch.__version__,
    }
    save_file(weights, path + ".part", metadata)
    os.chmod(path + ".part", 0o644)
    os.replace(path + ".part", path)


def write_cases(path, model, rows, out):
    """Test data: four strings of each form, and three with all their logits."""
    taken = [i for i in range(len(rows)) if sum(r[0] == rows[i][0] for r in rows[max(0, i - 4):i]) < 4]
    cases = [{"form": rows[i][0], "source": rows[i][1], "expected": rows[i][2], "greedy": out[i]}
             for i in taken]
    lengths = sorted(taken, key=lambda i: len(rows[i][1]))
    logits = []
    for i in (lengths[0], lengths[len(lengths) // 2], lengths[-1]):
        src, tgt = encode_sources([rows[i][1]]), encode_targets([rows[i][2]])[:, :-1]
        with torch.inference_mode():
            values = model(src, tgt)[0]
        logits.append({"source": rows[i][1], "expected": rows[i][2], "source_ids": src[0].tolist(),
                       "target_ids": tgt[0].tolist(), "logits": values.tolist()})
    with open(path, "w") as file:
        json.dump({"cases": cases, "logit_cases": logits}, file, indent=1)


def train(args):
    torch.manual_seed(args.seed)
    model = Transformer(args.dropout)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(FORMS)} forms")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step):  # linear warm-up, then a cosine down to zero
        done = (step - args.warmup) / max(1, args.steps - args.warmup)
        return (step + 1) / args.warmup if step < args.warmup else 0.5 + 0.5 * math.cos(math.pi * done)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    probe = test_rows(args.seed + 1, 20)
    source = batches(random.Random(f"train {args.seed}"), args.batch, args.train_typo)
    start, total = time.time(), 0.0
    for step in range(1, args.steps + 1):
        model.train()
        src, tgt = next(source)
        logits = model(src, tgt[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tgt[:, 1:].flatten(), label_smoothing=args.smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"step {step}  loss {total / 100:.4f}  {time.time() - start:.0f} s", flush=True)
            total = 0.0
        if step % args.save_every == 0 and step < args.steps:
            weights, copy = rounded(model)
            accuracy, _ = evaluate(copy, probe)
            export(args.out, weights, args.seed, step, len(probe), accuracy)
            print(f"step {step}  exact match {100 * accuracy:.2f} % of {len(probe)}", flush=True)
    print(f"trained in {(time.time() - start) / 60:.1f} minutes")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="dates.safetensors")
    parser.add_argument("--cases", help="also write test data for other implementations here (JSON)")
    parser.add_argument("--evaluate", metavar="FILE", help="do not train, test this file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--smoothing", type=float, default=0.02)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--train-typo", type=float, default=0.25,
                        help="share of mistyped months in training (the test has %g)" % MONTH_TYPO)
    parser.add_argument("--per-form", type=int, default=1000, help="held-out strings of each form")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.evaluate:
        with safe_open(args.evaluate, "pt") as file:
            weights = {k: file.get_tensor(k) for k in file.keys()}
        model = Transformer().eval()
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    else:
        weights, model = rounded(train(args))
    rows = test_rows(args.seed, args.per_form)
    accuracy, out = evaluate(model, rows)
    report(rows, out)
    if not args.evaluate:
        export(args.out, weights, args.seed, args.steps, len(rows), accuracy)
    if args.cases:
        write_cases(args.cases, model, rows, out)


if __name__ == "__main__":
    main()
