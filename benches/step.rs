//! The time of a bilevel step beside that of a plain training step of the same model: three forward and backward passes
//! and three updates against one of each.
//!
//! ```text
//! cargo bench --bench step
//! ```

use criterion::{Criterion, criterion_group, criterion_main};
use scalebio::burn::module::Param;
use scalebio::burn::optim::{AdamWConfig, GradientsParams};
use scalebio::burn::tensor::{Device, Tensor};
use scalebio::data::{Sample, Source, TokenBatch};
use scalebio::models::{CausalLm, Gpt2Config};
use scalebio::reweight::{self, Draws, SampleLosses, SourceWeights, TokenSources};
use scalebio::{Bilevel, ScaleBio, Update};

const VOCABULARY: usize = 512;
const LENGTH: usize = 64;
const BATCH: usize = 16;

fn source(name: &str, step: usize) -> Source {
    let sample = |start: usize| Sample {
        ids: (0..LENGTH)
            .map(|i| ((start + i * step) % VOCABULARY) as u32)
            .collect(),
        learned: vec![true; LENGTH],
    };
    Source {
        name: name.to_owned(),
        path: name.into(),
        samples: (0..64).map(sample).collect::<Vec<_>>().into(),
        records: 64,
        skipped: 0,
    }
}

fn quadratic(criterion: &mut Criterion) {
    type Vector = Param<Tensor<1>>;
    let device = Device::flex().autodiff();
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    };
    let zeros = || Param::from_tensor(Tensor::zeros([1000], &device));
    let mut run = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02))
        .start(problem, zeros(), zeros())
        .expect("settings that work");
    criterion.bench_function("quadratic, 1000 dimensions: bilevel step", |bencher| {
        bencher.iter(|| run.next());
    });
}

fn gpt2(criterion: &mut Criterion) {
    let device = Device::flex().autodiff();
    let model = || {
        CausalLm::from(
            Gpt2Config::new(VOCABULARY, LENGTH, 128, 2, 4)
                .init(0, &device)
                .expect("a config that works"),
        )
    };
    let training = TokenSources::new(vec![source("ones", 1), source("threes", 3)]);
    let validation = TokenSources::new(vec![source("val", 1)]);
    let problem = reweight::problem(Draws::new(training, BATCH), Draws::new(validation, BATCH));
    let weights = SourceWeights::uniform(["ones", "threes"], &device).expect("two sources");
    let mut run = ScaleBio::new(Update::adamw(1e-2), Update::adamw(1e-3))
        .start(problem.expect("draws that work"), weights, model())
        .expect("settings that work");

    let mut group = criterion.benchmark_group("GPT-2, width 128, 2 blocks, 16 x 64 tokens");
    group.sample_size(10);
    group.bench_function("bilevel step", |bencher| {
        bencher.iter(|| run.next());
    });
    let source = source("ones", 1);
    let batch = TokenBatch::new(
        &source.in_memory().unwrap()[..BATCH]
            .iter()
            .collect::<Vec<_>>(),
    );
    let mut optimizer = AdamWConfig::new().init();
    let mut plain = Some(model());
    group.bench_function("plain AdamW step", |bencher| {
        bencher.iter(|| {
            let model = plain.take().expect("a model between two steps");
            let loss = SampleLosses::sample_losses(&model, &batch).mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            plain = Some(optimizer.step(1e-3, model, gradients));
        });
    });
    group.finish();
}

criterion_group!(benches, quadratic, gpt2);
criterion_main!(benches);
