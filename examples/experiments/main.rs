//! explorer
mod denoising;
use std::path::PathBuf;
use clap::Parser;
use scalebio::train::*;
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 0)] seed: u64,
    #[arg(long, default_value_t = 300)] steps: usize,
    #[arg(long, default_value_t = 100)] batch: usize,
    #[arg(long, default_value_t = 32)] length: usize,
    #[arg(long, default_value_t = 64)] width: usize,
    #[arg(long, default_value_t = 2)] blocks: usize,
    #[arg(long, default_value_t = 512)] vocabulary: usize,
    #[arg(long, default_value_t = 10.0)] alpha: f64,
    #[arg(long, default_value_t = 3e-3)] lr_lower: f64,
    #[arg(long, default_value_t = 1e-2)] lr_upper: f64,
    #[arg(long, default_value_t = 300)] held_out: usize,
    #[arg(long)] out: PathBuf,
}
fn main() -> Outcome<()> {
    let a = Args::parse();
    let data = PathBuf::from("examples/data");
    let pairs = denoising::shipped(&data)?;
    let folder = a.out.join("data");
    denoising::base(&pairs, a.width, a.blocks, a.length, a.vocabulary, a.seed, &a.out.join("model"))?;
    denoising::write(pairs, a.held_out, a.seed, &folder)?;
    let config = ReweightConfig { model: Some(a.out.join("model")), steps: a.steps, batch: a.batch, max_length: a.length, alpha: a.alpha, lr_lower: a.lr_lower, lr_upper: a.lr_upper, seed: a.seed, ..ReweightConfig::new(&folder) };
    let e = Experiment::open(config)?;
    println!("samples {} tokens {}", e.validation().samples.len(), e.validation().samples.iter().map(|s| s.ids.len()).sum::<usize>());
    let mut run = e.reweight(a.out.join("run"))?;
    let t = std::time::Instant::now();
    for step in run.by_ref() {
        let step = step?;
        if step.index() % (a.steps/10) == 0 { println!("{:.0}s {step}", t.elapsed().as_secs_f64()); }
    }
    println!("L1(u-like) test {}", e.mean_loss(run.run().lower(), e.test().unwrap()));
    println!("{:?}", run.report().sources.iter().map(|s| (s.weight*1000.0).round()/1000.0).collect::<Vec<_>>());
    Ok(())
}
