#!/usr/bin/env python3
"""What a real GPU compiler makes of the WGSL, on a machine with no GPU.

Mesa's RADV compiles for an AMD family without one ("null device") and reports registers, spills, workgroup memory, occupancy and its own
estimate of latency and throughput. It knows no caches: it ranks inner loops, not kernels.

    python3 benches/static/shader_stats.py                        every variant, for NAVI31 and NAVI21, into benches/results/
    python3 benches/static/shader_stats.py -f NAVI31 FILE|DIR ..  these WGSL files alone, printed

Needs Mesa's Vulkan drivers 25 or newer, libvulkan-dev, a C compiler, and naga-cli 30 (`cargo install naga-cli`).
"""
import argparse, concurrent.futures, datetime, os, pathlib, re, resource, shutil, signal, subprocess, sys, tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FAMILIES = {"NAVI31": "RDNA3, Radeon RX 7900", "NAVI21": "RDNA2, Radeon RX 6900"}
# Columns, and how RADV spells them.
FIELDS = {"VGPRs": "VGPRs", "spilled": "Spilled VGPRs", "scratch": "Scratch size", "LDS": "LDS size", "waves": "Subgroups per SIMD",
          "instructions": "Instructions", "latency": "Latency", "inverse throughput": "Inverse Throughput"}
ENOUGH_WAVES = 8
# Registers of a SIMD's lane for waves of 64, which RADV counts twice.
REGISTERS = {"NAVI31": 768, "NAVI21": 512}
# Cooperative matrices that a family has, by how the names of classes end; shaders on others are not compiled for it.
MATRICES = {"NAVI31": ("m16.matrix",)}
PATIENCE = 900  # seconds of processor time for one shader: what else the machine does must not decide


class Failed(Exception):
    pass


def run(command, **more):
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE + 10))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", preexec_fn=limit, **more)
    if done.returncode == -signal.SIGXCPU:
        raise Failed(f"no end after {PATIENCE} s of processor time")
    if done.returncode < 0:
        raise Failed(f"ended by signal {signal.Signals(-done.returncode).name}")
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Failed(next((line for line in lines if "error" in line.lower()), lines[-1]).strip())
    return done.stdout


def compile_one(wgsl, family, tools, unchecked):
    """The statistics of one shader, or why there are none."""
    spirv = tools / f"{abs(hash((wgsl, family)))}.spv"
    checks = "Unchecked" if unchecked else "Restrict"
    uniform = re.search(r"@group\(0\)\s*@binding\((\d+)\)\s*var<uniform>", wgsl.read_text())
    environment = dict(os.environ, RADV_DEBUG="shaderstats,nocache", RADV_FORCE_FAMILY=family, VK_DRIVER_FILES=tools.joinpath("icd").read_text())
    try:
        # wgpu checks indices, and leaves whole buffers to the driver's robust access.
        run(["naga", "--index-bounds-check-policy", checks, "--buffer-bounds-check-policy", "Unchecked", str(wgsl), str(spirv)])
        out = run([str(tools / "compile_spirv"), str(spirv), uniform[1] if uniform else "-1"], env=environment)
    except Failed as error:
        return str(error)
    found = {}
    for name, spelled in FIELDS.items():
        value = re.search(rf"^{spelled}: *(\d+)", out, re.M | re.I)
        if not value:
            return f"the driver says nothing of {spelled!r}"
        found[name] = int(value[1])
    return found


def flags(stats, family):
    """What a reader should look at."""
    said = []
    if stats["spilled"] or stats["scratch"]:
        said.append("**spills**" if stats["spilled"] else "**scratch**")
    if stats["waves"] < ENOUGH_WAVES:
        reason = ""
        if family in REGISTERS:
            bound = 2 * (REGISTERS[family] // stats["VGPRs"]) < ENOUGH_WAVES
            reason = " by registers" if bound else " by workgroup memory"
        said.append(f"**< {ENOUGH_WAVES} waves**{reason}")
    return ", ".join(said)


def table(rows, family):
    """Rows of (name, statistics or a reason) as Markdown."""
    head = ["variant", *FIELDS, "look at"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(FIELDS) + "---|"]
    for name, stats in rows:
        if isinstance(stats, str):
            lines.append(f"| `{name}` |" + " |" * len(FIELDS) + f" **does not compile**: {stats} |")
        else:
            lines.append(f"| `{name}` | " + " | ".join(str(stats[field]) for field in FIELDS) + f" | {flags(stats, family)} |")
    return "\n".join(lines)


def prepare(tools):
    icd = sorted(pathlib.Path("/usr/share/vulkan/icd.d").glob("radeon_icd*.json"))
    missing = [what for what, there in [("naga (cargo install naga-cli)", shutil.which("naga")), ("a C compiler", shutil.which("cc")),
                                        ("Mesa's RADV (mesa-vulkan-drivers)", icd)] if not there]
    if missing:
        sys.exit("shader_stats: missing: " + ", ".join(missing))
    run(["cc", "-O1", str(HERE / "compile_spirv.c"), "-o", str(tools / "compile_spirv"), "-lvulkan"])
    (tools / "icd").write_text(str(icd[0]))


def measure(files, family, tools, arguments):
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        stats = pool.map(lambda wgsl: compile_one(wgsl, family, tools, arguments.unchecked), files)
        return [(wgsl.stem, found) for wgsl, found in zip(files, stats)]


def runs_on(wgsl, family):
    """Whether a family has the matrix units that a shader needs, if any."""
    return not wgsl.stem.endswith(".matrix") or wgsl.stem.endswith(MATRICES.get(family, ()))


def write_results(family, rows, left_out):
    commit = run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).strip()
    dirty = run(["git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "shaders"]).strip()
    good = [stats for _, stats in rows if not isinstance(stats, str)]
    flagged = sum(bool(flags(stats, family)) for stats in good)
    lacking = f" Left out: {left_out} on matrices of sizes that {family} has no units for." if left_out else ""
    text = f"""# Static table: {family} ({FAMILIES.get(family, "AMD")})

What RADV's compiler says of every variant, with no GPU there: `python3 benches/static/shader_stats.py`. Commit {commit}{" with changes" if dirty else ""},
{datetime.date.today()}. Scratch and LDS are bytes, latency and inverse throughput the compiler's estimates in cycles of one wave, waves those
that fit a SIMD at once. Index checks are on.

Where waves are fewer than {ENOUGH_WAVES} the last column says what bounds them, and `src/tuning/` and docs/ what that is for. Classes `1x1`, `row8` and
`…-quads` are CPU adapters' alone.

{len(rows)} variants; {len(rows) - len(good)} do not compile; {flagged} with spills, scratch or fewer than {ENOUGH_WAVES} waves.{lacking}

{table(rows, family)}
"""
    path = ROOT / "benches" / "results" / f"static-{family.lower()}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(f"{path.relative_to(ROOT)}: {len(rows)} variants, {len(rows) - len(good)} do not compile, {flagged} to look at")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("paths", nargs="*", type=pathlib.Path, help="WGSL files or folders; without any, every variant of the crate")
    p.add_argument("-f", "--family", action="append", help="NAVI31, NAVI21, GFX1150, VEGA10, …; may be given again")
    p.add_argument("-j", "--jobs", type=int, default=1, help="shaders compiled at once")
    p.add_argument("--unchecked", action="store_true", help="without index checks, as in modules made without them")
    arguments = p.parse_args()
    with tempfile.TemporaryDirectory() as made:
        tools = pathlib.Path(made)
        prepare(tools)
        paths = arguments.paths
        if not paths:
            run(["cargo", "run", "--quiet", "--example", "shaders", "--", str(tools / "wgsl")], cwd=ROOT)
            paths = [tools / "wgsl"]
        files = sorted((f for path in paths for f in (path.rglob("*.wgsl") if path.is_dir() else [path])), key=lambda f: f.name)
        for family in arguments.family or list(FAMILIES):
            wanted = files if arguments.paths else [f for f in files if runs_on(f, family)]
            rows = measure(wanted, family, tools, arguments)
            if arguments.paths:
                print(f"{family}\n\n{table(rows, family)}\n")
            else:
                write_results(family, rows, len(files) - len(wanted))


if __name__ == "__main__":
    main()
