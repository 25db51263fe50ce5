//! The optimizer's moments follow the layers: dropped when a block is frozen again, unless they are to be
//! kept.

use std::collections::BTreeSet;

use scalebio::{Moments, ScaleBio, Update};

use crate::layers::{BLOCKS, OTHERS, adam, blocks_of, lisa, moved, parameters, start};

/// Adam's two moments in double precision of `parameters` tensors of three numbers, in `w` and `u`,
/// and of the one number of `x`.
fn bytes_of(parameters: usize) -> usize {
    2 * 8 * (2 * 3 * parameters + 1)
}

#[test]
fn moments_of_a_block_that_is_frozen_again_are_dropped() {
    let mut run = start(adam().layers(lisa().period(1)));
    for step in 0..100 {
        run.next().unwrap().unwrap();
        assert_eq!(run.moment_bytes(), bytes_of(OTHERS + 2 * 2), "step {step}");
    }
}

#[test]
fn moments_that_are_kept_grow_to_all_blocks() {
    let mut run = start(adam().layers(lisa().period(1)).moments(Moments::Keep));
    let mut last = 0;
    for _ in 0..100 {
        run.next().unwrap().unwrap();
        let bytes = run.moment_bytes();
        assert!(bytes >= last);
        last = bytes;
    }
    assert_eq!(last, bytes_of(OTHERS + 2 * BLOCKS));
}

/// Largest distance of a step of a block of `w` from one rate of Adam, over steps 1.. that redraw every
/// time: of blocks that were frozen at the step before, and of blocks that were not.
fn farthest_from_first_steps(moments: Moments) -> [f64; 2] {
    let rate = 0.5;
    let sampler = lisa().active(4).period(1).seed(1);
    let update = || Update::adam(rate);
    let method = ScaleBio::new(Update::sgd(0.01), update());
    let mut run = start(method.layers(sampler).moments(moments));
    let mut farthest = [0.0_f64; 2];
    let mut last: Option<(BTreeSet<usize>, BTreeSet<usize>)> = None;
    for _ in 0..60 {
        let before = parameters(run.lower());
        run.next().unwrap().unwrap();
        let after = parameters(run.lower());
        let blocks = blocks_of(&moved(&before, &after), OTHERS);
        let (active, mut ever) = last.take().unwrap_or_default();
        for &block in blocks.intersection(&ever) {
            let path = format!("blocks.{block}.weight");
            let frozen = usize::from(active.contains(&block));
            for (a, b) in before[&path].iter().zip(&after[&path]) {
                farthest[frozen] = farthest[frozen].max(((a - b).abs() - rate).abs());
            }
        }
        ever.extend(&blocks);
        last = Some((blocks, ever));
    }
    farthest
}

#[test]
fn a_block_that_is_drawn_again_starts_from_fresh_moments() {
    // Adam's first step is the rate itself; a later one is not, where the gradient changes.
    let [redrawn, stayed] = farthest_from_first_steps(Moments::Reset);
    assert!(redrawn < 1e-6, "{redrawn}");
    assert!(stayed > 1e-2, "a block that stays active keeps its moments");
    let [redrawn, _] = farthest_from_first_steps(Moments::Keep);
    assert!(redrawn > 1e-2, "{redrawn}");
}
