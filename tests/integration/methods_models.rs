//! Methods where models are: in half precision, on a language model, and in logs.

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use scalebio::methods::{Bda, Bome, F2sa, Method, NoU, Penalized, Sama, Soba, ZerothOrder};
use scalebio::{Bilevel, LowerObjective, Result, Update, UpperObjective};

use crate::zoo::{Vector, flex};

type Boxed<F, G, X, W> = Box<dyn Method<F, G, X, W>>;

fn methods<F, G, X, W>() -> Vec<Boxed<F, G, X, W>>
where
    F: UpperObjective<X, W> + 'static,
    G: LowerObjective<X, W> + 'static,
    X: Module + 'static,
    W: Module + 'static,
{
    let sgd = || Update::sgd(0.01);
    vec![
        Box::new(Bda::new(sgd(), sgd())),
        Box::new(Bome::new(sgd(), sgd())),
        Box::new(F2sa::new(sgd(), sgd())),
        Box::new(NoU::new(sgd(), sgd())),
        Box::new(Penalized::new(1.0, sgd(), sgd())),
        Box::new(Sama::new(sgd(), sgd())),
        Box::new(Soba::new(sgd(), sgd())),
        Box::new(ZerothOrder::new(1.0, sgd(), 1e-4)),
    ]
}

type Loss = fn(&Vector, &Vector) -> Tensor<1>;

fn problem() -> Bilevel<Loss, Loss> {
    Bilevel {
        upper: |_, w| (w.val() - 3.0).square().sum(),
        lower: |x, w| (w.val() - x.val().cast(w.val().dtype())).square().sum(),
    }
}

fn vector(value: f64, dtype: DType) -> Vector {
    Vector::from_tensor(Tensor::from_data([value, value], (&flex(), dtype)))
}

/// Where half precision would lose an update or a difference in rounding it is refused, with what to do; methods whose
/// steps go through float32 copies take it.
#[test]
fn half_precision_is_refused_where_it_would_lose_updates() {
    for (dtype, given) in [
        (DType::BF16, "bfloat16"),
        (DType::F16, "float16"),
        (DType::F32, ""),
    ] {
        for method in methods() {
            let name = method.name();
            let (x, w) = (vector(0.0, DType::F32), vector(1.0, dtype));
            let error = method.start_boxed(problem(), x, w).err();
            let refused = ["bome", "sama", "soba", "zeroth_order"].contains(&name);
            assert_eq!(error.is_some(), refused && dtype != DType::F32, "{name}");
            let Some(error) = error else { continue };
            let text = error.to_string();
            for part in [
                given,
                name,
                "float32 or float64",
                "load the model in float32",
            ] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}

/// A step is shown with what the method has: without `u` there is neither its loss nor a gap.
#[test]
fn a_step_shows_only_what_there_is() {
    for method in methods() {
        let name = method.name();
        let (x, w) = (vector(0.0, DType::F64), vector(1.0, DType::F64));
        let mut run = method.start_boxed(problem(), x, w).unwrap();
        let text = run.next().unwrap().unwrap().to_string();
        let has_u = !["no_u", "sama", "soba"].contains(&name);
        let shown = text.contains("L2(u)") && text.contains("gap");
        assert_eq!(shown, has_u, "{name}: {text}");
        assert!(text.contains("L1(w)") && text.contains("|hypergradient|"));
        assert!(!text.contains("NaN"), "{name}: {text}");
    }
}

/// The methods that hold one model, or no tape of it, train a language model: finite losses, and weights of it and of the
/// sources that move.
#[cfg(feature = "llm")]
#[test]
fn methods_for_small_memory_train_a_language_model() -> Result<()> {
    use scalebio::models::CausalLm;
    use scalebio::reweight::{self, Draws, SourceWeights, TokenSources};

    use crate::lisa_gpt2::{bits, source};

    const STEPS: usize = 3;
    let adamw = || Update::adamw(1e-2);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/gpt2");
    let all: [Boxed<_, _, SourceWeights, CausalLm>; 3] = [
        Box::new(Sama::new(adamw(), Update::adamw(1e-3))),
        Box::new(NoU::new(adamw(), Update::adamw(1e-3))),
        Box::new(ZerothOrder::new(1.0, adamw(), 1e-5)),
    ];
    for method in all {
        let name = method.name();
        let model = CausalLm::from_pretrained(folder, &flex())?;
        let training = TokenSources::new(vec![source("ones", 1), source("threes", 3)]);
        let validation = TokenSources::new(vec![source("val", 1)]);
        let problem = reweight::problem(Draws::new(training, 4), Draws::new(validation, 4))?;
        let weights = SourceWeights::uniform(["ones", "threes"], &model.device())?;
        let before = (bits(&model), weights.weights());
        let mut run = method.start_boxed(problem, weights, model)?;
        for step in run.by_ref().take(STEPS) {
            let step = step?;
            let losses = [step.upper_loss(), step.lower_loss()];
            assert!(
                losses.iter().all(|loss| (0.1..20.0).contains(loss)),
                "{name}: {losses:?}"
            );
        }
        assert_ne!(bits(run.lower()), before.0, "{name}");
        assert_ne!(run.upper().weights(), before.1, "{name}");
    }
    Ok(())
}
