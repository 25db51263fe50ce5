//! Operations of language models with forward and backward passes of their own on the CPU device, in float32; and AdamW.
//!
//! A training step of a small model on a CPU is spent only half in matmuls; the rest are passes over temporaries, most of
//! them recorded by a tape that knows single operations only. Each kernel here is one node of Burn's tape, makes one or two
//! passes, vectorised and on all threads, and stores what its backward pass needs and no more. Every function returns
//! `None` where it does not apply (another device, another number type, a tape that recomputes), and the caller has the
//! plain formula beside it; the tests compare the two.
//!
//! The result does not depend on the number of threads: work is cut into pieces of fixed size, and sums over pieces are
//! taken in order. Vector instructions come from the compiler (simd.rs), matmuls from the crate that Flex uses (product.rs).

mod activation;
mod adamw;
mod attention;
mod head;
mod linear;
mod loss;
mod math;
mod norm;
mod product;
mod rotary;
mod simd;
mod squares;

use std::fmt::Debug;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex};
use burn::tensor::{DType, Shape, Tensor, TensorData};

pub(crate) use activation::{Curve, curve, gated};
pub(crate) use adamw::{AdamW, adamw};
pub(crate) use attention::{attention, merged_attention};
pub(crate) use head::Head;
pub(crate) use linear::linear;
pub(crate) use loss::cross_entropy;
pub(crate) use norm::{layer_norm, rms_norm};
pub(crate) use rotary::turn;
pub(crate) use squares::square_sum;

/// An operation of `N` tensors, none of which it changes.
trait Kernel<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs.
    type Saved: Clone + Debug + Send + 'static;

    /// The result, and what to save if the gradients of `wanted` will be asked for. Inputs may be views.
    fn forward(&self, inputs: [FlexTensor; N], wanted: [bool; N]) -> (FlexTensor, Self::Saved);

    /// The gradients in the inputs from the contiguous one in the result.
    fn backward(
        &self,
        saved: Self::Saved,
        gradient: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N];
}

/// A tensor of the CPU device, with its tape or without.
enum Input {
    Plain(FlexTensor),
    Recorded(FloatTensor<Autodiff<Flex>>),
}

/// `None` for a tensor that kernels do not apply to.
fn input<const D: usize>(tensor: &Tensor<D>) -> Option<Input> {
    if tensor.dtype() != DType::F32 {
        return None;
    }
    let recorded = tensor.clone().try_into_primitive::<Autodiff<Flex>>();
    recorded.map(Input::Recorded).ok().or_else(|| {
        let plain = tensor.clone().try_into_primitive::<Flex>();
        plain.map(Input::Plain).ok()
    })
}

/// The same without a tape only.
fn plain<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    match input(tensor)? {
        Input::Plain(tensor) => Some(tensor),
        Input::Recorded(_) => None,
    }
}

/// Runs a kernel, on the tape if one of the inputs is.
fn apply<const N: usize, const D: usize, K: Kernel<N>>(
    kernel: K,
    inputs: [Option<Input>; N],
) -> Option<Tensor<D>> {
    let inputs: Vec<Input> = inputs.into_iter().collect::<Option<_>>()?;
    let recorded = inputs.iter().any(|i| matches!(i, Input::Recorded(_)));
    let lifted = inputs.into_iter().map(|input| match input {
        Input::Plain(tensor) => Autodiff::<Flex>::from_inner(tensor),
        Input::Recorded(tensor) => tensor,
    });
    let lifted: Vec<_> = lifted.collect();
    let wanted: Vec<bool> = lifted.iter().map(|tensor| tensor.is_tracked()).collect();
    let wanted = wanted.try_into().ok()?;
    let (tensors, guards): (Vec<_>, Vec<_>) = lifted.into_iter().map(|t| t.into_parts()).unzip();
    let tensors: [FlexTensor; N] = tensors.try_into().ok()?;
    if !recorded {
        return Some(Tensor::from_primitive::<Flex>(
            kernel.forward(tensors, wanted).0,
        ));
    }
    let prepared = Recorded(kernel.clone()).prepare::<NoCheckpointing>(guards.try_into().ok()?);
    let (result, saved) = kernel.forward(tensors, wanted);
    let result = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(saved, result),
        OpsKind::UnTracked(prepared) => prepared.finish(result),
    };
    Some(Tensor::from_primitive::<Autodiff<Flex>>(result))
}

/// A kernel as Burn's tape sees it.
#[derive(Debug)]
struct Recorded<K>(K);

impl<const N: usize, K: Kernel<N>> Backward<Flex, N> for Recorded<K> {
    type State = K::Saved;

    fn backward(self, ops: Ops<K::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node).to_contiguous();
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = self.0.backward(ops.state, gradient, wanted);
        for (parent, gradient) in ops.parents.iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// The tensor without gaps in its storage. By value, so that one without gaps can be changed in place.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// The numbers of a contiguous tensor.
fn numbers(tensor: &FlexTensor) -> &[f32] {
    // A view that is not contiguous would be a defect of a kernel, and the empty slice stops it at once.
    tensor.as_slice().unwrap_or_default()
}

fn tensor(numbers: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(numbers, shape))
}

fn shape<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims()
}

/// A matrix within the storage of a tensor: its first number, rows and columns, and how far apart they lie.
fn matrix(
    tensor: &FlexTensor,
    start: usize,
    [rows, columns]: [usize; 2],
    strides: [isize; 2],
) -> FlexTensor {
    let layout = Layout::new([rows, columns].into(), strides.to_vec(), start);
    FlexTensor::from_arc(tensor.data_arc(), layout, DType::F32)
}

/// The transpose, without moving a number.
fn turned(tensor: &FlexTensor) -> FlexTensor {
    let layout = tensor.layout().transpose(0, 1);
    tensor.clone().with_layout(layout)
}
