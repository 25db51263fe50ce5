//! Peak memory over the loaded state, and time, of gradients and steps: one process for every row of the table.
//!
//! ```text
//! cargo bench --bench memory
//! cargo bench --bench memory -- scaling
//! ```
//!
//! Only the tables whose name contains the word are printed. The peak is the largest resident size since the state (one
//! or two models) was loaded, as Linux counts it; time is the best of the steps, on whatever else the machine does.

use std::process::Command;
use std::{env, fs};

use scalebio::burn::module::{Module, ModuleMapper, Param, ParamGroup};
use scalebio::burn::optim::AdamWConfig;
use scalebio::burn::tensor::{Device, Tensor};
use scalebio::data::{Sample, Source, TokenBatch};
use scalebio::models::{CausalLm, Differentiation, Gpt2Config, MemoryPlan, ModelSize, PlanConfig};
use scalebio::reweight::{self, Draws, SampleLosses, SourceWeights, TokenSources};
use scalebio::{ActiveLayers, LayerSampler, Lisa, ScaleBio, Update};
use serde::{Deserialize, Serialize};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Tells a child process which row it is.
const CASE: &str = "SCALEBIO_MEMORY_CASE";

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum What {
    /// One gradient of one model.
    Gradient,
    /// One gradient of one model and an AdamW step.
    Step,
    /// Three gradients of two models, and their AdamW steps.
    Bilevel,
    /// The same with the gradients of `u` and `w` at the same time.
    Parallel,
    /// The same in turn, over 500 steps with 25 draws of two blocks by LISA.
    Lisa,
}

/// A row.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Case {
    what: What,
    plain: bool,
    width: usize,
    blocks: usize,
    vocabulary: usize,
    length: usize,
    batch: usize,
    /// Blocks that train; with none, everything does.
    active: Vec<usize>,
    /// Whether what lies outside the blocks trains too.
    others: bool,
    steps: usize,
}

/// GPT d=512, 16 blocks, vocabulary 512, 4 x 256 tokens, as in issue 5.
const BASE: Case = Case {
    what: What::Step,
    plain: false,
    width: 512,
    blocks: 16,
    vocabulary: 512,
    length: 256,
    batch: 4,
    active: Vec::new(),
    others: false,
    steps: 3,
};

fn tables() -> Vec<(&'static str, Vec<Case>)> {
    let case = |what, plain, active: &[usize]| Case {
        what,
        plain,
        active: active.to_vec(),
        ..BASE
    };
    let pairs: [&[usize]; 4] = [&[3, 12], &[12, 14], &[0, 1], &[0, 15]];
    let mut one = vec![case(What::Step, true, &[]), case(What::Step, false, &[])];
    let mut two = Vec::new();
    for pair in pairs {
        one.extend([true, false].map(|plain| case(What::Step, plain, pair)));
        two.push(case(What::Bilevel, true, pair));
        two.push(case(What::Bilevel, false, pair));
        two.push(case(What::Parallel, false, pair));
    }
    let depth = [8, 16, 32].map(|blocks| Case {
        blocks,
        ..case(What::Step, false, &[0, 1])
    });
    let head =
        [(true, true), (false, true), (true, false), (false, false)].map(|(plain, trains)| Case {
            blocks: 1,
            vocabulary: 50_257,
            others: trains,
            ..case(What::Gradient, plain, &[0])
        });
    let tokens = [1, 2, 4, 8].map(|batch| Case {
        batch,
        ..case(What::Bilevel, false, &[0, 15])
    });
    let blocks = [4, 8, 16, 32].map(|blocks| Case {
        blocks,
        ..case(What::Bilevel, false, &[0, blocks - 1])
    });
    let long = [50, 500].map(|steps| Case {
        steps,
        width: 128,
        blocks: 8,
        length: 32,
        ..case(What::Lisa, false, &[])
    });
    vec![
        ("one model, gradient and AdamW step", one),
        ("one model against depth", depth.to_vec()),
        ("bilevel step", two),
        (
            "head and loss, vocabulary 50,257 x 1,024 tokens",
            head.to_vec(),
        ),
        ("scaling in tokens", tokens.to_vec()),
        ("scaling in blocks", blocks.to_vec()),
        ("scaling in steps", long.to_vec()),
    ]
}

fn main() -> Result<(), AnyError> {
    if let Ok(case) = env::var(CASE) {
        return run(&serde_json::from_str(&case)?);
    }
    let words: Vec<_> = env::args().skip(1).collect();
    if words.iter().any(|word| word == "--test") {
        let tiny = Case {
            width: 64,
            blocks: 2,
            length: 16,
            steps: 2,
            ..BASE
        };
        return print_row(&tiny);
    }
    let wanted = words.iter().find(|word| !word.starts_with('-'));
    for (name, cases) in tables() {
        if wanted.is_some_and(|word| !name.contains(word.as_str())) {
            continue;
        }
        println!("\n{name}");
        println!(
            "what      tape       width  blocks  tokens  active    others  steps   MiB state  MiB peak over it  predicted  CPU s/step"
        );
        for case in cases {
            print_row(&case)?;
        }
    }
    Ok(())
}

fn print_row(case: &Case) -> Result<(), AnyError> {
    let child = Command::new(env::current_exe()?)
        .env(CASE, serde_json::to_string(case)?)
        .output()?;
    if !child.status.success() {
        return Err(String::from_utf8_lossy(&child.stderr).into_owned().into());
    }
    let active = match case.active.as_slice() {
        [] => "all".to_owned(),
        blocks => format!("{blocks:?}").replace(['[', ']', ' '], ""),
    };
    println!(
        "{:<9} {:<9} {:>6}  {:>6}  {:>6}  {active:<8}  {:<6}  {:>5}  {}",
        format!("{:?}", case.what),
        if case.plain { "plain" } else { "blockwise" },
        case.width,
        case.blocks,
        case.batch * case.length,
        if case.active.is_empty() || case.others {
            "train"
        } else {
            "frozen"
        },
        case.steps,
        String::from_utf8(child.stdout)?.trim_end()
    );
    Ok(())
}

/// Takes the steps of a row, in a process of its own, and prints sizes and time.
fn run(case: &Case) -> Result<(), AnyError> {
    let device = Device::flex().autodiff();
    let mut started = 0.0;
    let (state, peak) = match case.what {
        What::Gradient | What::Step => {
            let mut model = Some(case.model(&device)?);
            let source = case.source("ones", 1);
            let samples = source.in_memory().unwrap();
            let batch = TokenBatch::new(&samples[..case.batch].iter().collect::<Vec<_>>());
            let factors = vec![1.0 / case.batch as f64; case.batch];
            let mut optimizer = AdamWConfig::new().init();
            let state = mark()?;
            for step in 0..case.steps {
                if step == 1 {
                    started = cpu_seconds()?;
                }
                let Some(current) = model.take() else { break };
                let (_, gradients) = current.differentiate(&batch, &factors)?;
                model = Some(match case.what {
                    What::Step => optimizer.step(1e-3, current, gradients),
                    _ => current,
                });
            }
            (state, status("VmHWM")?)
        }
        What::Bilevel | What::Parallel | What::Lisa => {
            let training = vec![case.source("ones", 1), case.source("threes", 3)];
            let problem = reweight::problem(
                Draws::new(TokenSources::new(training), case.batch),
                Draws::new(TokenSources::new(vec![case.source("val", 1)]), case.batch),
            )?;
            let weights = SourceWeights::uniform(["ones", "threes"], &device)?;
            let model = case.model(&device)?;
            let mut method = ScaleBio::new(Update::adamw(1e-2), Update::adamw(1e-4));
            if case.what == What::Lisa {
                let blocks = Lisa::over(&model, &model.blocks_path())?;
                method = method.layers(blocks.freeze_others().period(case.steps / 25));
            } else {
                method = method.layers(Fixed(case.group()));
            }
            let mut run = method.start(problem, weights, model)?;
            if case.what == What::Parallel {
                run = run.in_parallel();
            }
            let state = mark()?;
            for step in 0..case.steps {
                if step == 1 {
                    started = cpu_seconds()?;
                }
                run.next().transpose()?;
            }
            (state, status("VmHWM")?)
        }
    };
    let time = (cpu_seconds()? - started) / (case.steps - 1).max(1) as f64;
    let (over, plan) = (peak - state, case.predicted(&device)?);
    println!("{state:>10.0}  {over:>16.0}  {plan:>9}  {time:>10.2}");
    Ok(())
}

impl Case {
    fn model(&self, device: &Device) -> Result<CausalLm, AnyError> {
        let heads = (self.width / 64).max(1);
        let config = Gpt2Config::new(self.vocabulary, self.length, self.width, self.blocks, heads);
        let how = match self.plain {
            true => Differentiation::Plain,
            false => Differentiation::Blockwise,
        };
        let model = CausalLm::from(config.init(0, device)?).with_differentiation(how);
        let active = match self.what {
            What::Gradient | What::Step => self.group(),
            _ => ParamGroup::all(), // the run freezes blocks itself
        };
        let path = Vec::new();
        Ok(model.map(&mut Freeze { active, path }))
    }

    /// What a plan of the bilevel step says, in MiB, over the loaded model.
    fn predicted(&self, device: &Device) -> Result<String, AnyError> {
        if !matches!(self.what, What::Bilevel | What::Parallel) {
            return Ok("-".to_owned());
        }
        let size = ModelSize::of(&self.model(device)?);
        let active = self.active.len();
        let plan = MemoryPlan::new(
            &size,
            &PlanConfig {
                batch: self.batch,
                length: self.length,
                lisa_blocks: (active > 0).then_some(active),
                draws: Some(1),
                freeze_others: active > 0 && !self.others,
                blockwise: Some(!self.plain),
                concurrent: self.what == What::Parallel,
                ..PlanConfig::default()
            },
        )?;
        // u and w train the same blocks here, so that half as many are no longer shared.
        let same = 4 * active * size.per_block();
        let over = plan.total() - plan.devices()[0].w - same as u64;
        Ok(format!("{:.0}", over as f64 / f64::from(1 << 20)))
    }

    fn group(&self) -> ParamGroup {
        let mut parts: Vec<_> = self.active.iter().map(|i| format!("blocks.{i}.")).collect();
        if self.others {
            parts.extend(["wte", "wpe", "ln_f"].map(|name| format!("Gpt2.{name}")));
        }
        match parts.is_empty() {
            true => ParamGroup::all(),
            false => ParamGroup::from_any_predicates(parts),
        }
    }

    fn source(&self, name: &str, step: usize) -> Source {
        let sample = |start: usize| Sample {
            ids: (0..self.length)
                .map(|i| ((start * 17 + i * step) % self.vocabulary) as u32)
                .collect(),
            learned: vec![true; self.length],
        };
        Source {
            name: name.to_owned(),
            path: name.into(),
            samples: (0..2 * self.batch).map(sample).collect::<Vec<_>>().into(),
            records: 2 * self.batch,
            skipped: 0,
        }
    }
}

/// The same blocks at every step.
#[derive(Debug)]
struct Fixed(ParamGroup);

impl LayerSampler for Fixed {
    fn sample(&mut self, step: usize) -> Option<ActiveLayers> {
        (step == 0).then(|| ActiveLayers::same(self.0.clone()))
    }
}

/// Freezes all parameters but the active ones; also draws the random values, which are drawn when they are first used.
struct Freeze {
    active: ParamGroup,
    path: Vec<String>,
}

impl ModuleMapper for Freeze {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let active = self.active.matches(&param.id, Some(&self.path.join(".")));
        param.val();
        param.set_require_grad(active)
    }
}

/// Resident MiB now; the peak is counted from here on.
fn mark() -> Result<f64, AnyError> {
    fs::write("/proc/self/clear_refs", "5")?;
    status("VmRSS")
}

/// CPU time of this process so far, in the hundredths that Linux counts.
fn cpu_seconds() -> Result<f64, AnyError> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let after = text.rsplit(')').next().ok_or("no fields")?;
    let fields = after.split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = fields.map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

fn status(key: &str) -> Result<f64, AnyError> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find(|line| line.starts_with(key));
    let line = line.ok_or("Linux prints no such line")?;
    let kib: f64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib / 1024.0)
}
