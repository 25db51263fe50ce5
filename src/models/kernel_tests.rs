//! The kernels of the CPU device against the plain formulas: each function is run on Flex, which has kernels, and on NdArray,
//! which has none, and values and all gradients are compared.

#![allow(clippy::unwrap_used)]

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::activation::Activation;
use super::attention::{attention, causal_bias};
use super::head::Head;
use super::linear::{self, Linear};
use super::loss::{Targets, row_losses};
use super::norm::{LayerNorm, RmsNorm};
use super::rotary::Rope;
use crate::kernels;

/// Numbers of about -3 to 3.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut one = || random.random_range(-1.5..1.5);
    (0..count).map(|_| one() + one()).collect()
}

/// The value of `f` at random inputs and its gradients in them, for a random gradient in the value.
fn run<const D: usize, const R: usize>(
    device: &Device,
    shapes: &[[usize; D]],
    f: impl Fn(&[Tensor<D>]) -> Tensor<R>,
) -> Vec<Vec<f32>> {
    let device = device.clone().autodiff();
    let inputs: Vec<Tensor<D>> = shapes
        .iter()
        .zip(0..)
        .map(|(shape, seed)| {
            let data = TensorData::new(random(seed, shape.iter().product()), *shape);
            Tensor::from_data(data, &device).require_grad()
        })
        .collect();
    let value = f(&inputs);
    let shape = value.dims();
    let weights = TensorData::new(random(99, shape.iter().product()), shape);
    let weights = Tensor::<R>::from_data(weights, &device);
    let gradients = (value.clone() * weights).sum().backward();
    let gradients = inputs.iter().map(|input| input.grad(&gradients).unwrap());
    let mut all = vec![value.into_data().try_into_vec().unwrap()];
    all.extend(gradients.map(|gradient| gradient.into_data().try_into_vec::<f32>().unwrap()));
    all
}

/// Within 1e-5 of the largest number, and so none of them NaN or infinite.
fn agree<const D: usize, const R: usize>(
    shapes: &[[usize; D]],
    f: impl Fn(&[Tensor<D>]) -> Tensor<R>,
) {
    let flex = run(&Device::flex(), shapes, &f);
    #[allow(deprecated)]
    let plain = run(&Device::ndarray(), shapes, &f);
    for (index, (flex, plain)) in flex.iter().zip(&plain).enumerate() {
        assert_eq!(flex.len(), plain.len());
        let largest = plain.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
        for (a, b) in flex.iter().zip(plain) {
            let close = (a - b).abs() <= 1e-5 * largest;
            assert!(close, "result {index}: {a} against {b}");
        }
    }
}

fn parameter<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::from_mapped_value(burn::module::ParamId::new(), tensor, Default::default())
}

const ACTIVATIONS: [Activation; 4] = [
    Activation::GeluNew,
    Activation::Gelu,
    Activation::Relu,
    Activation::Silu,
];

/// A mask `[batch, keys]` of sequences padded on the right.
fn mask(tokens: &[usize], keys: usize, device: &Device) -> Tensor<2, Int> {
    let row = |count: &usize| (0..keys).map(|i| i64::from(i < *count)).collect::<Vec<_>>();
    let data = TensorData::new(
        tokens.iter().flat_map(row).collect::<Vec<_>>(),
        [tokens.len(), keys],
    );
    Tensor::from_data(data, device)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn non_linearities(rows in 1_usize..300, width in 1_usize..130, which in 0_usize..4) {
        let activation = ACTIVATIONS[which];
        let shape = [rows, width];
        agree(&[shape], |x| activation.forward(x[0].clone()));
        agree(&[shape, shape], |x| activation.gated(x[0].clone(), x[1].clone()));
    }

    #[test]
    fn norms(rows in 1_usize..200, width in 2_usize..200, from_one: bool) {
        agree(&[[rows, width], [1, width]], |x| {
            let weight = parameter(x[1].clone().reshape([width]));
            RmsNorm { weight, epsilon: 1e-5, from_one }.forward(x[0].clone())
        });
        agree(&[[rows, width], [1, width], [1, width]], |x| {
            let gamma = parameter(x[1].clone().reshape([width]));
            let beta = parameter(x[2].clone().reshape([width]));
            LayerNorm { gamma, beta, epsilon: 1e-3 }.forward(x[0].clone())
        });
    }

    #[test]
    fn linear_layers(rows in 1_usize..100, input in 1_usize..80, output in 1_usize..200, bias: bool) {
        let bias_of = |x: &[Tensor<2>]| bias.then(|| parameter(x[2].clone().reshape([output])));
        agree(&[[rows, input], [output, input], [1, output]], |x| {
            let layer = Linear { weight: parameter(x[1].clone()), bias: bias_of(x) };
            layer.forward(x[0].clone()) + x[2].clone()
        });
        agree(&[[rows, input], [input, output], [1, output]], |x| {
            let layer = burn::nn::Linear { weight: parameter(x[1].clone()), bias: bias_of(x) };
            linear::linear(&layer, x[0].clone()) + x[2].clone()
        });
    }

    #[test]
    fn attentions(
        tokens in prop::collection::vec(1_usize..300, 1..3),
        seen in 0_usize..20,
        shared in 1_usize..4,
        key_heads in 1_usize..3,
        head in 1_usize..20,
        cap in prop::option::of(1.0..30.0),
        window in prop::option::of(1_usize..200),
    ) {
        let length = *tokens.iter().max().unwrap();
        let (batch, heads, keys) = (tokens.len(), key_heads * shared, seen + length);
        let tokens: Vec<usize> = tokens.iter().map(|count| count + seen).collect();
        let of_keys = [batch, key_heads, keys, head];
        agree(&[[batch, heads, length, head], of_keys, of_keys], |x| {
            let bias = causal_bias(mask(&tokens, keys, &x[0].device()), length, window);
            let scale = 1.0 / (head as f64).sqrt();
            attention(x[0].clone(), x[1].clone(), x[2].clone(), &bias, scale, cap)
        });
    }

    #[test]
    fn merged_attentions(tokens in prop::collection::vec(1_usize..200, 1..3), heads in 1_usize..4, head in 1_usize..9) {
        let length = *tokens.iter().max().unwrap();
        let (batch, width) = (tokens.len(), heads * head);
        agree(&[[batch * length, 3 * width]], |x| {
            let bias = causal_bias(mask(&tokens, length, &x[0].device()), length, None);
            if let Some(mixed) = kernels::merged_attention(&x[0], heads, &bias, 0.3) {
                return mixed;
            }
            let part = |part: usize| {
                let part = x[0].clone().slice([0..batch * length, part * width..(part + 1) * width]);
                part.reshape([batch, length, heads, head]).swap_dims(1, 2)
            };
            attention(part(0), part(1), part(2), &bias, 0.3, None).swap_dims(1, 2)
        });
    }

    #[test]
    fn turns(batch in 1_usize..4, length in 1_usize..200, heads in 1_usize..4, half in 1_usize..9, fixed in 0_usize..5) {
        let rope = Rope {
            frequencies: (0..half).map(|i| 0.5_f32.powi(i as i32)).collect(),
            head: 2 * half + fixed,
        };
        let head = rope.head;
        agree(&[[batch, length, heads, head]], |x| {
            rope.at(3, length, &x[0].device(), FloatDType::F32).turn(x[0].clone())
        });
    }

    #[test]
    fn heads(tokens in prop::collection::vec(1_usize..30, 1..4), vocabulary in 2_usize..400, width in 1_usize..40, chunk in 1_usize..80, capped: bool, trains: bool) {
        let device = Device::flex();
        let length = tokens.iter().copied().max().unwrap_or(0) + 1;
        let labels: Vec<i64> = tokens
            .iter()
            .flat_map(|&count| (0..length).map(move |i| match (1..=count).contains(&i) {
                true => ((7 * i + 3 * count) % vocabulary) as i64,
                false => -100,
            }))
            .collect();
        let labels = TensorData::new(labels, [tokens.len(), length]);
        let targets = Targets::of(&Tensor::from_data(labels, &device));
        let factors: Vec<f64> = (0..tokens.len()).map(|sample| 1.0 - 0.6 * sample as f64).collect();
        let factors = targets.row_factors(&factors);
        let matrix = |seed, rows| {
            let data = TensorData::new(random(seed, rows * width), [rows, width]);
            Tensor::<2>::from_data(data, &device)
        };
        let (hidden, weight) = (matrix(0, targets.rows().len()), matrix(1, vocabulary));
        let cap = capped.then_some(2.5);
        let head = kernels::Head { weight: &weight, cap, trains, chunk };
        let found = head.differentiate(&hidden, targets.all_labels(), &factors).unwrap();
        let plain = Head { weight: weight.clone(), cap, trains };
        let expected = plain.in_chunks(hidden, &targets, &factors, 17);
        let close = |a: Vec<f64>, b: Vec<f64>| {
            let scale = b.iter().fold(1e-3_f64, |most, b| most.max(b.abs()));
            prop_assert_eq!(a.len(), b.len());
            prop_assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * scale));
            Ok(())
        };
        let numbers = |x: Tensor<2>| x.into_data().iter::<f64>().collect::<Vec<_>>();
        close(found.losses, expected.losses)?;
        close(numbers(found.of_hidden), numbers(expected.of_hidden))?;
        prop_assert_eq!(found.of_weight.is_some(), trains);
        if let (Some(found), Some(expected)) = (found.of_weight, expected.of_weight) {
            close(numbers(found), numbers(expected))?;
        }
    }

    #[test]
    fn losses(rows in 1_usize..80, vocabulary in 1_usize..900) {
        let labels: Vec<i64> = (0..rows).map(|row| (row * 7 % vocabulary) as i64).collect();
        agree(&[[rows, vocabulary]], |x| row_losses(x[0].clone(), &labels));
    }
}

/// In a sequence of padding alone every query gets an even mixture of the keys up to it. Queries of padding before tokens have
/// no such meaning (kernels stop at the chunk, the plain formula does not), but stay finite with their gradients.
#[test]
fn rows_that_see_no_key_get_an_even_mixture() {
    let (length, heads, head) = (140, 2, 5);
    let bias = |seen: [i64; 2], window, device: &Device| {
        // `seen[0]` for the first 133 positions of the first sequence, then `seen[1]`; all of the second.
        let mut mask = vec![1_i64; 2 * length];
        mask[..133].fill(seen[0]);
        mask[133..length].fill(seen[1]);
        let mask = Tensor::<2, Int>::from_data(TensorData::new(mask, [2, length]), device);
        causal_bias(mask, length, window)
    };
    let shape = [2, heads, length, head];
    let of = |x: &[Tensor<4>], seen, window, cap| {
        let bias = bias(seen, window, &x[0].device());
        attention(x[0].clone(), x[1].clone(), x[2].clone(), &bias, 0.4, cap)
    };
    for (window, cap) in [(None, None), (Some(30), Some(5.0))] {
        agree(&[shape; 3], |x| of(x, [0, 0], window, cap));
        let left = run(&Device::flex(), &[shape; 3], |x| of(x, [0, 1], window, cap));
        assert!(left.concat().iter().all(|number| number.is_finite()));
    }
    let values = run(&Device::flex(), &[shape; 3], |x| of(x, [0, 0], None, None));
    // The values are those of the third seed; the second query sees the mean of two.
    let of_v = random(2, shape.iter().product());
    for i in 0..head {
        let mean = (of_v[i] + of_v[head + i]) / 2.0;
        assert!((values[0][head + i] - mean).abs() < 1e-5);
    }
}

/// Logits of 1e4, which no exponential holds: losses are differences of logits, and gradients are finite.
#[test]
fn losses_of_large_logits_are_finite() {
    let (rows, vocabulary) = (40, 300);
    let labels: Vec<i64> = (0..rows).map(|row| (row * 7 % vocabulary) as i64).collect();
    for scale in [1e4 / 3.0, 1e4, -1e4] {
        agree(&[[rows, vocabulary]], |x| {
            row_losses(x[0].clone() * scale, &labels)
        });
    }
    let ends = |label| {
        let device = Device::flex().autodiff();
        let logits = Tensor::<2>::from_data([[1e4_f32, -1e4]], &device).require_grad();
        let loss = row_losses(logits.clone(), &[label]).sum();
        let gradient = logits.grad(&loss.backward()).unwrap().into_data();
        (
            loss.into_scalar::<f32>(),
            gradient.try_into_vec::<f32>().unwrap(),
        )
    };
    assert_eq!(ends(0), (0.0, vec![0.0, 0.0]));
    assert_eq!(ends(1), (2e4, vec![1.0, -1.0]));
}

/// Rows of zeros, which have no variance, and no rows at all.
#[test]
fn empty_and_zero_rows_are_no_special_case() {
    let zero = |x: &Tensor<2>| x.clone() * 0.0;
    let layer = |x: &[Tensor<2>]| {
        let weight = || parameter(x[1].clone().reshape([9]));
        let root = RmsNorm {
            weight: weight(),
            epsilon: 1e-5,
            from_one: false,
        };
        let whole = LayerNorm {
            gamma: weight(),
            beta: weight(),
            epsilon: 1e-5,
        };
        (root, whole)
    };
    agree(&[[4, 9], [1, 9]], |x| layer(x).0.forward(zero(&x[0])));
    agree(&[[4, 9], [1, 9]], |x| layer(x).1.forward(zero(&x[0])));
    agree(&[[4, 9]], |x| row_losses(zero(&x[0]), &[0, 3, 8, 1]));
    agree(&[[4, 9]], |x| {
        Activation::Gelu.gated(zero(&x[0]), zero(&x[0]))
    });

    let none = |f: &dyn Fn(&[Tensor<2>]) -> Tensor<2>| {
        let all = run(&Device::flex(), &[[0, 9], [1, 9]], f);
        let [value, gradient, of_weight] = <[Vec<f32>; 3]>::try_from(all).unwrap();
        assert!(value.is_empty() && gradient.is_empty());
        assert!(of_weight.iter().all(|g| *g == 0.0));
    };
    // The weight is part of every result, so that it has a gradient.
    none(&|x| layer(x).0.forward(x[0].clone()));
    none(&|x| layer(x).1.forward(x[0].clone()));
    none(&|x| Activation::Silu.forward(x[0].clone()) * x[1].clone());
    none(&|x| {
        let layer = Linear {
            weight: parameter(x[1].clone()),
            bias: None,
        };
        layer.forward(x[0].clone())
    });
    none(&|x| row_losses(x[0].clone() * x[1].clone(), &[]));
}

/// Kernels are taken on the CPU device in float32, and nowhere else; else the tests above would compare a formula with itself.
#[test]
fn kernels_are_for_flex_in_float32_only() {
    let taken = |device: &Device, dtype| {
        let x = Tensor::<2>::ones([2, 2], device).cast(dtype);
        kernels::curve(kernels::Curve::Silu, &x).is_some()
    };
    let flex = Device::flex();
    assert!(taken(&flex, FloatDType::F32));
    assert!(taken(&flex.clone().autodiff(), FloatDType::F32));
    for dtype in [FloatDType::F64, FloatDType::BF16, FloatDType::F16] {
        assert!(!taken(&flex, dtype));
    }
    #[allow(deprecated)]
    let plain = Device::ndarray();
    assert!(!taken(&plain, FloatDType::F32) && !taken(&plain.autodiff(), FloatDType::F32));
}

/// A frozen weight gets no gradient, and what is below it still does.
#[test]
fn gradients_pass_through_frozen_weights() {
    let device = Device::flex().autodiff();
    let tensor = |seed| Tensor::<2>::from_data(TensorData::new(random(seed, 12), [3, 4]), &device);
    let x = tensor(0).require_grad();
    let layer = Linear {
        weight: parameter(tensor(1)),
        bias: None,
    }
    .freeze();
    let gradients = layer.forward(x.clone()).sum().backward();
    assert!(layer.weight.val().grad(&gradients).is_none());
    let expected = Tensor::<2>::ones([3, 3], &device).matmul(tensor(1)).inner();
    let difference = (x.grad(&gradients).unwrap() - expected).abs().max();
    assert!(difference.into_scalar::<f32>() < 1e-5);
}

/// Results, to the last bit, do not depend on the number of threads.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let block = || {
        let (batch, length, heads, head) = (3, 150, 2, 40);
        let width = heads * head;
        run(
            &Device::flex(),
            &[[batch * length, width], [width, 3 * width], [1, width]],
            |x| {
                let gamma = parameter(x[2].clone().reshape([width]));
                let norm = RmsNorm {
                    weight: gamma,
                    epsilon: 1e-5,
                    from_one: false,
                };
                let layer = burn::nn::Linear {
                    weight: parameter(x[1].clone()),
                    bias: None,
                };
                let qkv = linear::linear(&layer, norm.forward(x[0].clone()));
                let qkv = Activation::Gelu.forward(qkv);
                let bias = causal_bias(mask(&[150, 20, 90], length, &qkv.device()), length, None);
                let mixed = kernels::merged_attention(&qkv, heads, &bias, 0.2).unwrap();
                row_losses(
                    mixed.reshape([batch * length, width]),
                    &vec![3; batch * length],
                )
            },
        )
    };
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(block)
    };
    let bits = |results: Vec<Vec<f32>>| -> Vec<u32> {
        results.concat().into_iter().map(f32::to_bits).collect()
    };
    let one = bits(with(1));
    for threads in [2, 3, 5] {
        assert!(bits(with(threads)) == one, "{threads} threads");
    }
}
