use tileformer::convenience::*;
use tileformer::kernels::*;
use tileformer::*;
fn main() -> Result<()> {
    let gpu = Gpu::open(&Setup::default())?;
    println!("{:?}", gpu.info);
    let kernels = Kernels::new(&gpu.device, Options::default())?;
    for (m, k, n) in [(128, 768, 3072), (512, 512, 512), (1, 768, 3072), (67, 131, 129)] {
        let x: Vec<f32> = (0..m * k).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
        let w: Vec<f32> = (0..n * k).map(|i| ((i * 104729) % 1000) as f32 / 1000.0 - 0.5).collect();
        let mut b = Builder::new(&kernels, "p");
        let tx = b.input("x", Element::F32, Layout::contiguous(&[m, k])?)?;
        let tw = b.weight("w", Layout::contiguous(&[n, k])?)?;
        let ty = b.output("y", Element::F32, Layout::contiguous(&[m, n])?)?;
        b.linear("linear", &Linear::new(tx, tw, ty))?;
        let p = b.finish()?;
        println!("{}", p.describe());
        let mut bind = Bindings::new();
        let y = gpu.zeros(Element::F32, &[m, n])?;
        bind.set("x", gpu.upload_f32(&[m, k], &x)?).set("w", gpu.upload_weight(&[n, k], &w)?).set("y", y.clone());
        let plan = p.bind(&bind)?;
        gpu.run(&plan)?;
        let t: f64 = (0..10).map(|_| gpu.time(&plan).unwrap()[0].1).fold(1e30, f64::min);
        let got = gpu.read_f32(&y)?;
        let mut err = 0.0f64;
        for i in [0, m / 2, m - 1] {
            for j in 0..n {
                let e: f64 = (0..k).map(|c| x[i * k + c] as f64 * w[j * k + c] as f64).sum();
                err = err.max((got[i * n + j] as f64 - e).abs());
            }
        }
        println!("{m}x{k}x{n}: {:.3} ms {:.2} GFLOP/s err {err:e}", t / 1e6, 2.0 * (m * n * k) as f64 / t);
    }
    Ok(())
}
