//! What a run is not resumed as, and what it has no checkpoint of.

use burn::tensor::DType;
use scalebio::Order;
use tempfile::tempdir;

use super::kept::names;
use super::{Case, Model, PLAIN, after, checkpoint, vector};
use crate::zoo::Vector;

/// Every difference between the run and what it is resumed as is refused, with both values.
#[test]
fn another_method_problem_or_module_is_refused_with_the_difference() {
    let folder = tempdir().unwrap();
    checkpoint(folder.path());
    let refused = |case: Case, words: [&str; 2]| {
        let (x, w) = case.variables();
        let error = case
            .method()
            .resume(folder.path(), case.problem(), x, w)
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("step-00000003"), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let with = |change: fn(&mut Case)| {
        let mut case = PLAIN;
        change(&mut case);
        case
    };
    refused(
        with(|c| c.optimizer = 0),
        ["auxiliary variable is AdamW", "but Sgd, rate 0.01"],
    );
    refused(with(|c| c.stages = 2), ["stages: 1", "stages: 2"]);
    refused(
        with(|c| c.keep = true),
        ["moments is Reset in the checkpoint", "but Keep here"],
    );
    refused(with(|c| c.clip = Some(0.5)), ["clip is None", "Some(0.5)"]);
    refused(
        with(|c| c.lisa = None),
        ["1 of 3 blocks every 2 steps", "nothing"],
    );
    refused(
        with(|c| c.lisa = Some((2, 2, false))),
        ["1 of 3 blocks", "2 of 3 blocks"],
    );
    refused(
        with(|c| c.order = Order::ShuffleOnce),
        ["Reshuffle, seed 1", "ShuffleOnce, seed 1"],
    );
    refused(
        with(|c| c.dtype = DType::F64),
        ["is F32 [2] in the checkpoint, but F64 [2] here", "upper"],
    );

    let refused = |x: Vector, w: Model, words: [&str; 2]| {
        let error = PLAIN
            .method()
            .resume(folder.path(), PLAIN.problem(), x, w)
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("tensors.safetensors"), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let (x, w) = PLAIN.variables();
    let longer = vector(&[0.0; 3], DType::F32);
    refused(
        longer.clone(),
        w.clone(),
        [
            "the upper variable is another one",
            "is F32 [2] in the checkpoint, but F32 [3]",
        ],
    );
    let mut other = w.clone();
    other.head = longer;
    refused(x.clone(), other, ["`head`", "is F32 [2] in the checkpoint"]);
    let mut other = w.clone();
    other.head = other.head.set_require_grad(false);
    refused(
        x.clone(),
        other,
        ["`head` trains in the checkpoint", "is frozen here"],
    );
    let mut other = w.clone();
    other.blocks.push(vector(&[0.0], DType::F32));
    let method = || PLAIN.method().layers(scalebio::AllLayers);
    let error = method()
        .resume(folder.path(), PLAIN.problem(), x.clone(), other)
        .unwrap_err();
    assert!(error.to_string().contains("nothing is drawn"), "{error}");
    // Without layers the parameters are what differs.
    let dir = folder.path().join("all");
    let mut run = method()
        .start(PLAIN.problem(), x.clone(), w.clone())
        .unwrap();
    after(&mut run, 1);
    run.checkpoint(&dir).unwrap();
    let mut more = w.clone();
    more.blocks.push(vector(&[0.0], DType::F32));
    let error = method()
        .resume(&dir, PLAIN.problem(), x.clone(), more)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`blocks.3` is not in the checkpoint"),
        "{error}"
    );
    let mut fewer = w;
    fewer.blocks.pop();
    let error = method()
        .resume(&dir, PLAIN.problem(), x, fewer)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`blocks.2` is only in the checkpoint"),
        "{error}"
    );
}

/// Moments in float64 of an optimizer that is not one of ours would come back in float32: there is no checkpoint then.
#[test]
fn moments_that_would_not_come_back_exactly_are_refused() {
    let folder = tempdir().unwrap();
    let case = Case {
        optimizer: 3,
        dtype: DType::F64,
        ..PLAIN
    };
    let mut run = case.start();
    after(&mut run, 1);
    let error = run.checkpoint(folder.path()).unwrap_err().to_string();
    assert!(error.contains("an optimizer of yours"), "{error}");
    assert!(names(folder.path()).is_empty());
    // Another optimizer of the user's than that of the run, which has the same text.
    let case = Case {
        optimizer: 3,
        ..PLAIN
    };
    let mut run = case.start();
    after(&mut run, 1);
    run.checkpoint(folder.path()).unwrap();
    let other = Case {
        optimizer: 4,
        ..PLAIN
    };
    let (x, w) = other.variables();
    let error = other
        .method()
        .resume(folder.path(), other.problem(), x, w)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not what this optimizer remembers"),
        "{error}"
    );
}
