#!/usr/bin/env python3
"""The bench beside PyTorch and the peers, on the same device: one command, one table, one record.

    python3 benches/compare.py [ROW ...] [--adapter NAME] [--peak-f32 TFLOPS] [--peak-f16 TFLOPS] [--out DIR]

Runs the bench, torch_speed.py (plain and with torch.compile) where PyTorch is there, and the peers where they are built, and writes
every line and the table to benches/results/<adapter>-<date>.jsonl and .md, anew behind each of them: a run that is cut off leaves those that
had ended. What is not there is named. benches/README.md says what the numbers mean, and how it runs where no Rust toolchain is.
"""
import argparse, datetime, json, os, pathlib, re, subprocess, sys, tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = {"WGSL": HERE / "peers/target/release/peers", "SPIR-V": HERE / "peers/target/spirv/release/peers"}
# What benches/pack.sh puts beside this folder: the bench, built, and the commit that it was built from.
PACKED, COMMIT = ROOT / "speed", ROOT / "commit"


def objects(text):
    """Those of its lines that are JSON objects; the last one of a program that was stopped may be a part of one."""
    whole = (line for line in text.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n"))
    return [json.loads(line) for line in whole]


def read(path):
    """The objects of a file of JSON lines, none of a file that is not there."""
    return objects(path.read_text()) if path.exists() else []


def run(command, seconds, **more):
    """The output of a command, or of as much of it as ran in so many seconds, and what to say of its end."""
    try:
        done = subprocess.run(command, text=True, timeout=seconds, **more)
        return done.stdout or "", f"which ended with status {done.returncode}" if done.returncode else None
    except subprocess.TimeoutExpired as stopped:
        # What was read so far comes as bytes, whatever was asked for.
        return (stopped.stdout or b"").decode(), f"which was stopped after {seconds:g} s"


def ours(arguments, scratch):
    out = scratch / "ours.jsonl"
    program = [str(PACKED)] if PACKED.exists() else ["cargo", "bench", "--bench", "speed", "--"]
    command = [*program, *arguments.rows, "--json", str(out)]
    for name in ("adapter", "peak_f32", "peak_f16"):
        value = getattr(arguments, name)
        command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    command += ["--unchecked"] if arguments.unchecked else []
    status = subprocess.run(command, cwd=ROOT).returncode
    return read(out) if status == 0 else sys.exit(f"compare: the bench ended with status {status}")


def torch(ids, on_cpu, compiled, seconds):
    """PyTorch's lines, and what is missing of them."""
    probe = "import torch; print(torch.cuda.is_available())"
    there = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if there.returncode:
        return [], f"PyTorch, which is not installed for {pathlib.Path(sys.executable).name}"
    if not on_cpu and there.stdout.strip() != "True":
        return [], "PyTorch, which finds no CUDA device"
    options = ["--device", "cpu", "--small"] if on_cpu else ["--device", "cuda"]
    options += ["--compile"] if compiled else []
    print("\ntorch_speed.py " + " ".join(options), flush=True)
    command = [sys.executable, "-u", str(HERE / "torch_speed.py"), "--rows", ",".join(sorted(ids)), *options]
    output, end = run(command, seconds, stdout=subprocess.PIPE)
    sys.stdout.write(output)
    by = "PyTorch" + ", compiled" * compiled
    lines = [dict(line, by=f"{by}, CPU" if on_cpu else by) for line in objects(output)]
    return lines, end and f"the rest of {by}, {end}"


def peers(arguments, compiler, scratch):
    """The peers' lines, and what is missing of them."""
    program = PEERS[compiler]
    if not program.exists():
        return [], f"{program.relative_to(ROOT)}, which is not built"
    out = scratch / f"peers-{compiler}.jsonl"
    command = [str(program), *arguments.rows, "--json", str(out)]
    command += ["--adapter", arguments.adapter] if arguments.adapter else []
    _, end = run(command, arguments.seconds, cwd=HERE / "peers")
    return read(out), end and f"the rest of the peers with {compiler}, {end}"


def table(own, others):
    """Rows in the bench's order; a peer timed in turn with ours is set against those times of ours."""
    names = list(dict.fromkeys(line["by"] for line in others))
    found = {(line["by"], line["id"], line["dtype"]): line for line in others if "ms" in line}
    names = [name for name in names if any(key[0] == name for key in found)]
    head = ["row", "dtype", "ours, ms", "of the ceiling"] + [f"{name}, ms (ratio)" for name in names] + ["variants"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (2 + len(names)) + "---|"]
    for line in own:
        if "dtype" not in line:
            continue
        if "ms" not in line:
            lines.append(f"| {line['id']} | {line['dtype']} | not run: {line['not_run']} |" + " |" * (2 + len(names)))
            continue
        share = line["percent_of_ceiling"]
        cells = [line["id"], line["dtype"], f"{line['ms']:.4g}", "unknown" if share is None else f"{share:.1f} %"]
        for name in names:
            peer = found.get((name, line["id"], line["dtype"]))
            cells.append(f"{peer['ms']:.4g} ({peer['ms'] / peer.get('ours_ms', line['ms']):.2f})" if peer else "")
        lines.append("| " + " | ".join(cells + [line["how"]]) + " |")
    return "\n".join(lines)


def git(*command):
    return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True).stdout.strip()


def report(arguments, own, others, missing):
    """Writes the record, and says what it is and where."""
    head, copy, empty = own[:3]
    torches = [line for line in others if "torch" in line]
    text = f"""# {head["device"]}, {head["date"]}

Adapter {head["device"]} ({head["backend"]}), driver {head["driver"]}, commit {head["commit"]}. {arguments.note}

Ours: with {head["with"]}; {head["clock"]}. Copy {copy["GB_per_s"]:.5g} GB/s ({copy["how"]}); an empty dispatch behind another {empty["us"]:.3g} µs; peaks: {head["peaks"]}.
{"".join(f"PyTorch {line['torch']} on {line['device']}. " for line in torches[:1])}A ratio is the peer's time over ours: above 1 we are faster. Peers were
timed in turn with ours, PyTorch after it.
{"".join(f"{chr(10)}Missing: {what}.{chr(10)}" for what in missing)}
{table(own, others)}
"""
    slug = re.sub(r"[^a-z0-9]+", "-", head["device"].lower()).strip("-")
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = arguments.out / f"{slug}-{head['date']}.jsonl"
    record.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*own, *others]))
    record.with_suffix(".md").write_text(text)
    return f"\n{text}\n{os.path.relpath(record)} and .md"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows", nargs="*", metavar="ROW", help="only rows with this in their id")
    p.add_argument("--adapter", help="part of the adapter's name")
    p.add_argument("--peak-f32", type=float, metavar="TFLOPS")
    p.add_argument("--peak-f16", type=float, metavar="TFLOPS")
    p.add_argument("--unchecked", action="store_true", help="ours without index checks in shaders")
    p.add_argument("--seconds", type=float, metavar="S", help="stops what runs behind the bench after this, each program: burn tunes itself for minutes")
    p.add_argument("--note", default="", help="a sentence for the record, such as what else the machine does")
    p.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder for the record")
    arguments = p.parse_args()

    if COMMIT.exists():
        commit = COMMIT.read_text().strip()
    else:
        changes = git("status", "--porcelain", "--", "src", "shaders", "benches/*.rs")
        commit = git("rev-parse", "--short", "HEAD") + " with changes" * bool(changes)
    with tempfile.TemporaryDirectory() as made:
        own = ours(arguments, pathlib.Path(made))
        own[0] |= {"commit": commit, "date": datetime.date.today().isoformat(), "note": arguments.note}
        ids = {line["id"] for line in own if "dtype" in line}
        on_cpu = own[0]["device_type"] == "Cpu"
        runs = [lambda compiled=compiled: torch(ids, on_cpu, compiled, arguments.seconds) for compiled in (False, True)]
        runs += [lambda compiler=compiler: peers(arguments, compiler, pathlib.Path(made)) for compiler in PEERS]
        others, missing = [], []
        said = report(arguments, own, others, missing)
        for part in runs:
            lines, what = part()
            others += lines
            missing += [what] if what and what not in missing else []
            said = report(arguments, own, others, missing)
        print(said)


if __name__ == "__main__":
    main()
