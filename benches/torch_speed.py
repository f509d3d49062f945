"""Times the rows of the speed table (rows.rs, under the same ids) with PyTorch, for a side-by-side reading on the same device.

usage: python3 torch_speed.py [--device cuda|cpu] [--small] [--compile] [--rows id,id]
Prints one JSON object a line: {"id", "dtype", "ms", "how"}; for decoding "ms" is a step, and there is "tokens_per_s". --small is the list for CPU adapters.

On CUDA every row is captured into a graph of at least 20 calls that rotate over enough copies of its tensors to overflow the 60 MB
L2, so that neither Python's launches nor the cache flatter or punish anyone. f32 is plain f32, without TF32.
"""
import argparse, json, statistics, time
import torch
import torch.nn.functional as F

p = argparse.ArgumentParser()
p.add_argument("--device", default="cuda")
p.add_argument("--small", action="store_true")
p.add_argument("--compile", action="store_true")
p.add_argument("--rows", default="")
args = p.parse_args()
dev = torch.device(args.device)
cuda = dev.type == "cuda"
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
torch.manual_seed(0)
wanted = set(filter(None, args.rows.split(",")))
L2 = 60 << 20


def rand(*s, dtype):
    return torch.randn(*s, device=dev, dtype=dtype)


def graph_ms(calls):
    """Median milliseconds of one call, from replays of a graph holding all of them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for f in calls[:3]:
            f()
    torch.cuda.current_stream().wait_stream(side)
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for f in calls:
            f()
    times = []
    for i in range(23):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); g.replay(); b.record(); b.synchronize()
        if i >= 3:
            times.append(a.elapsed_time(b) / len(calls))
    return statistics.median(times)


def row(id, dtype, make, moved, how):
    """make() gives a callable on fresh tensors; moved is the bytes that one call touches."""
    id += "-small" * args.small
    if wanted and id not in wanted:
        return
    with torch.inference_mode():
        if cuda:
            copies = [make() for _ in range(max(1, min(24, 1 + 3 * L2 // max(moved, 1))))]
            calls = [copies[i % len(copies)] for i in range(max(20, len(copies)) if moved < (1 << 30) else 3)]
            ms = graph_ms(calls)
        else:
            f, times, start = make(), [], time.perf_counter()
            while len(times) < 8 or len(times) < 23 and time.perf_counter() - start < 4:
                s = time.perf_counter(); f(); times.append((time.perf_counter() - s) * 1e3)
            ms = statistics.median(times[3:])
        print(json.dumps({"id": id, "dtype": str(dtype).split(".")[-1], "ms": round(ms, 5), "how": how}), flush=True)


def maybe_compile(f):
    return torch.compile(f) if args.compile else f


def linears(dtype):
    shapes = [("linear-128", 128, 768, 3072, True), ("linear-512", 512, 512, 512, False), ("linear-1@768", 1, 768, 3072, False)] if args.small else [
        ("linear-4096", 4096, 4096, 4096, False), ("linear-1024", 1024, 768, 3072, True), ("linear-128", 128, 768, 3072, True),
        ("linear-1@768", 1, 768, 3072, False), ("linear-1@4096", 1, 4096, 4096, False)]
    run = {True: maybe_compile(lambda x, w, b: F.gelu(F.linear(x, w, b))), False: maybe_compile(lambda x, w, b: F.linear(x, w, b))}
    for id, m, k, n, gelu in shapes:
        def make(m=m, k=k, n=n, gelu=gelu):
            x, w, b = rand(m, k, dtype=dtype), rand(n, k, dtype=dtype), rand(n, dtype=dtype)
            return lambda: run[gelu](x, w, b)
        row(id, dtype, make, (m * k + n * k + m * n) * dtype.itemsize, "F.linear")


def attentions(dtype):
    cases = [("attn-128-64", 2, 12, 128, 128, 64, False, True), ("attn-1-64@b1", 1, 12, 1, 1024, 64, False, False)] if args.small else [
        ("attn-2048-64", 8, 16, 2048, 2048, 64, False, False), ("attn-2048-128c", 8, 16, 2048, 2048, 128, True, False),
        ("attn-128-64", 32, 12, 128, 128, 64, False, True), ("attn-1-64@b1", 1, 12, 1, 1024, 64, False, False),
        ("attn-1-64@b32", 32, 12, 1, 1024, 64, False, False)]
    for id, b, h, t, s, d, causal, padded in cases:
        def make(b=b, h=h, t=t, s=s, d=d, causal=causal, padded=padded):
            q, k, v = rand(b, h, t, d, dtype=dtype), rand(b, h, s, d, dtype=dtype), rand(b, h, s, d, dtype=dtype)
            lengths = torch.linspace(s // 2, s, b, device=dev).long()
            mask = (torch.arange(s, device=dev)[None] < lengths[:, None])[:, None, None] if padded else None
            return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        row(id, dtype, make, 2 * b * h * (t + s) * d * dtype.itemsize, "SDPA (f32: 3xTF32 inside)" if cuda else "SDPA")


def layers(dtype):
    E, D = torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer
    for id, b, t, c, h, ff in [
            ("bert-layer-128", 1, 128, 768, 12, 3072), ("bert-layer-512", 1, 512, 256, 4, 1024),
            ("bert-layer-32", 8, 32, 256, 4, 1024)] if args.small else [
            ("bert-layer-128", 32, 128, 768, 12, 3072), ("bert-layer-512", 8, 512, 768, 12, 3072)]:
        m = E(c, h, ff, 0.0, "gelu", batch_first=True, device=dev, dtype=dtype).eval()
        f = maybe_compile(m)
        def make(b=b, t=t, c=c, f=f):
            x = rand(b, t, c, dtype=dtype)
            return lambda: f(x)
        row(id, dtype, make, 1 << 30, "TransformerEncoderLayer")
    m = D(512, 8, 2048, 0.0, "relu", batch_first=True, device=dev, dtype=dtype).eval()
    mask = torch.nn.Transformer.generate_square_subsequent_mask(64, device=dev, dtype=dtype)
    f = maybe_compile(m)
    def make(f=f, b=2 if args.small else 32):
        x, y = rand(b, 64, 512, dtype=dtype), rand(b, 64, 512, dtype=dtype)
        return lambda: f(x, y, tgt_mask=mask, tgt_is_causal=True)
    row("base-decoder", dtype, make, 1 << 30, "TransformerDecoderLayer")
    if not args.small:
        m = torch.nn.TransformerEncoder(E(384, 12, 1536, 0.0, "gelu", batch_first=True, device=dev, dtype=dtype), 6,
                                        enable_nested_tensor=False).eval()
        g = maybe_compile(m)
        def make(g=g):
            x = rand(32, 128, 384, dtype=dtype)
            return lambda: g(x)
        row("minilm", dtype, make, 1 << 30, "TransformerEncoder, 6 layers")
    n = 512 if args.small else 65536
    w, b = rand(768, dtype=dtype), rand(768, dtype=dtype)
    norm = maybe_compile(lambda x, r: F.layer_norm(x + r, (768,), w, b))
    def make():
        x, r = rand(n, 768, dtype=dtype), rand(n, 768, dtype=dtype)
        return lambda: norm(x, r)
    row("norm-768", dtype, make, 3 * n * 768 * dtype.itemsize, "add + layer_norm")
    rows, cols = (3072, 256) if args.small else (196608, 512)
    def make():
        s = rand(rows, cols, dtype=dtype)
        return lambda: torch.softmax(s, -1)
    row("softmax-512", dtype, make, 2 * rows * cols * dtype.itemsize, "softmax")


def decode(id, dtype, n, c, h, ff, vocab, ctx, new, batches):
    """A decoder step with a static cache (learned positions, GELU); on CUDA the step is captured once and replayed, as a fast engine would."""
    for batch in batches:
        row_id = f"{id}@b{batch}" + "-small" * args.small
        if wanted and row_id not in wanted:
            continue
        S = ctx + new
        wte, wpe = rand(vocab, c, dtype=dtype) * 0.02, rand(S + 8, c, dtype=dtype) * 0.02
        L = [[rand(3 * c, c, dtype=dtype) * .02, rand(c, c, dtype=dtype) * .02, rand(ff, c, dtype=dtype) * .02,
              rand(c, ff, dtype=dtype) * .02] for _ in range(n)]
        one, zero = torch.ones(c, device=dev, dtype=dtype), torch.zeros(c, device=dev, dtype=dtype)
        K = [rand(batch, h, S + 8, c // h, dtype=dtype) for _ in range(n)]
        V = [rand(batch, h, S + 8, c // h, dtype=dtype) for _ in range(n)]
        ids, pos = torch.zeros(batch, device=dev, dtype=torch.long), torch.full((1,), ctx, device=dev, dtype=torch.long)
        keys = torch.arange(S + 8, device=dev)

        def step():
            x = wte[ids] + wpe[pos]
            mask = (keys <= pos)[None, None, None]
            for i, (wqkv, wo, w1, w2) in enumerate(L):
                q, k, v = F.linear(F.layer_norm(x, (c,), one, zero), wqkv).view(batch, 3, h, 1, c // h).unbind(1)
                K[i].index_copy_(2, pos, k); V[i].index_copy_(2, pos, v)
                a = F.scaled_dot_product_attention(q, K[i], V[i], attn_mask=mask).reshape(batch, c)
                x = x + F.linear(a, wo)
                x = x + F.linear(F.gelu(F.linear(F.layer_norm(x, (c,), one, zero), w1), approximate="tanh"), w2)
            ids.copy_(F.linear(F.layer_norm(x, (c,), one, zero), wte).argmax(-1))
            pos.add_(1)

        with torch.inference_mode():
            how, run = "eager", step
            if cuda:
                side = torch.cuda.Stream(); side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    pos.fill_(ctx); step()
                torch.cuda.current_stream().wait_stream(side)
                g = torch.cuda.CUDAGraph(); pos.fill_(ctx)
                with torch.cuda.graph(g):
                    step()
                how, run = "CUDA graph, static cache", g.replay
            rates = []
            for _ in range(4):
                pos.fill_(ctx)
                if cuda: torch.cuda.synchronize()
                s = time.perf_counter()
                for _ in range(new):
                    run()
                if cuda: torch.cuda.synchronize()
                rates.append(batch * new / (time.perf_counter() - s))
        rate = statistics.median(rates[1:])
        print(json.dumps({"id": row_id, "dtype": str(dtype).split(".")[-1], "ms": round(1e3 * batch / rate, 5), "tokens_per_s": round(rate, 1), "how": how}), flush=True)


if __name__ == "__main__":
    print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name() if cuda else "cpu"}), flush=True)
    for dtype in ([torch.float32, torch.float16] if cuda else [torch.float32]):
        linears(dtype); attentions(dtype); layers(dtype)
        if args.small:
            decode("gpt2-decode", dtype, 2, 768, 12, 3072, 50257, 16, 8, (1, 32))
        else:
            decode("gpt2-decode", dtype, 12, 768, 12, 3072, 50257, 128, 128, (1, 32))
            if dtype == torch.float16:
                decode("8b-decode", dtype, 32, 4096, 32, 16384, 32000, 128, 64, (1,))
    if cuda:
        a, b = torch.empty(2 << 30, device=dev, dtype=torch.uint8), torch.empty(2 << 30, device=dev, dtype=torch.uint8)
        with torch.inference_mode():
            ms = graph_ms([lambda: b.copy_(a)] * 3)
        print(json.dumps({"id": "copy", "GB_per_s": round(2 * a.numel() / ms / 1e6, 1)}))
