//! The output head and its loss without a tape: gradients in closed form, a chunk of rows at a time.
//!
//! The logits of a batch are its largest tensor by far (1,024 tokens of 50,257: 196 MiB), and a tape holds them several
//! times. Here a chunk's logits become its gradient in place, and the next chunk's take their room.

use std::ops::Range;

use burn::tensor::{IndexingUpdateOp, Tensor, TensorData};

use super::{attention::widened, loss::Targets};
#[cfg(feature = "flex")]
use crate::kernels;

/// Logits of about this many bytes are in memory at a time, in up to three tensors. With 16 MiB a gradient of
/// 1,024 tokens of 50,257, width 512, took 5.5 CPU seconds and 90 MiB beside the weight's; with 48 MiB, 3.3 s and 182 MiB.
pub(super) const CHUNK_BYTES: usize = 24 << 20;
/// The CPU device's kernel has one of these tensors, not three, and takes larger ones in less memory.
pub(super) const KERNEL_CHUNK_BYTES: usize = 32 << 20;
/// Fewer rows than this are not worth a pass over the weight.
const FEWEST_ROWS: usize = 64;

/// The output head: logits `c tanh(h W^T / c)`, without the tanh where there is no cap c. Nothing is on a tape.
pub(super) struct Head {
    /// `[vocabulary, width]`
    pub weight: Tensor<2>,
    pub cap: Option<f64>,
    /// Whether the gradient in the weight is wanted.
    pub trains: bool,
}

/// What [`Head::differentiate`] finds.
pub(super) struct HeadGradients {
    /// The loss of each row.
    pub losses: Vec<f64>,
    /// The gradient in the hidden states, `[rows, width]`.
    pub of_hidden: Tensor<2>,
    /// The gradient in the weight, if it is wanted.
    pub of_weight: Option<Tensor<2>>,
}

impl Head {
    /// The losses of the rows that predict a label, and the gradients of `sum_j factor_j loss_j`, a sum over rows.
    ///
    /// # Shapes
    /// - `hidden` `[rows, width]`, after the final norm, one row at least
    pub fn differentiate(
        &self,
        hidden: Tensor<2>,
        targets: &Targets,
        factors: &[f32],
    ) -> HeadGradients {
        let [vocabulary, _] = self.weight.dims();
        #[cfg(feature = "flex")]
        if let Some(found) = (kernels::Head {
            weight: &self.weight,
            cap: self.cap,
            trains: self.trains,
            chunk: chunk_rows(vocabulary, KERNEL_CHUNK_BYTES),
        })
        .differentiate(&hidden, targets.all_labels(), factors)
        {
            return HeadGradients {
                losses: found.losses,
                of_hidden: found.of_hidden,
                of_weight: found.of_weight,
            };
        }
        self.in_chunks(
            hidden,
            targets,
            factors,
            chunk_rows(vocabulary, CHUNK_BYTES),
        )
    }

    pub(super) fn in_chunks(
        &self,
        hidden: Tensor<2>,
        targets: &Targets,
        factors: &[f32],
        size: usize,
    ) -> HeadGradients {
        let [count, _] = hidden.dims();
        let (mut losses, mut of_hidden) = (Vec::new(), Vec::new());
        let mut of_weight = None;
        for start in (0..count).step_by(size) {
            let chunk = start..(start + size).min(count);
            let rows = hidden.clone().narrow(0, start, chunk.len());
            let (loss, of_logits) = self.chunk(rows.clone(), targets, factors, chunk);
            losses.push(loss);
            if self.trains {
                of_weight = Some(added(of_weight, of_logits.clone(), rows));
            }
            of_hidden.push(of_logits.matmul(self.weight.clone()));
        }
        HeadGradients {
            losses: Tensor::cat(losses, 0).into_data().iter::<f64>().collect(),
            of_hidden: Tensor::cat(of_hidden, 0),
            of_weight: of_weight.map(|sum| sum.cast(self.weight.dtype())),
        }
    }

    /// The losses of a chunk, and the gradient in `h W^T`: with the softmax p of the logits, factor `f` and label `y`,
    /// `f (p - 1_y)`, times the slope of the cap.
    fn chunk(
        &self,
        hidden: Tensor<2>,
        targets: &Targets,
        factors: &[f32],
        rows: Range<usize>,
    ) -> (Tensor<2>, Tensor<2>) {
        let device = hidden.device();
        let labels = targets.labels(rows.clone(), &device);
        let data = TensorData::new(factors[rows.clone()].to_vec(), [rows.len(), 1]);

        // Each line consumes what the one before made, so that they all work in the same memory.
        let products = widened(hidden.matmul(self.weight.clone().transpose()));
        let factors = Tensor::<2>::from_data(data, &device).cast(products.dtype());
        let (logits, squashed) = match self.cap {
            None => (products, None),
            Some(cap) => {
                let squashed = (products / cap).tanh();
                (squashed.clone() * cap, Some(squashed))
            }
        };
        let highest = logits.clone().max_dim(1);
        let logits = logits - highest;
        let target = logits.clone().gather(1, labels.clone());
        let weights = logits.exp();
        let total = weights.clone().sum_dim(1);
        let losses = total.clone().log() - target;
        let gradient = weights * (factors.clone() / total);
        let gradient = gradient.scatter(1, labels, -factors, IndexingUpdateOp::Add);
        let gradient = match squashed {
            None => gradient,
            Some(squashed) => gradient * (squashed.square() * -1.0 + 1.0),
        };
        (losses, gradient.cast(self.weight.dtype()))
    }
}

/// Rows of a chunk of so many bytes.
pub(super) fn chunk_rows(vocabulary: usize, bytes: usize) -> usize {
    (bytes / (4 * vocabulary)).max(FEWEST_ROWS)
}

/// `sum + of_logits^T rows`, in pieces of the vocabulary, so that the product takes little memory beside the sum.
fn added(sum: Option<Tensor<2>>, of_logits: Tensor<2>, rows: Tensor<2>) -> Tensor<2> {
    let ([_, vocabulary], [_, width]) = (of_logits.dims(), rows.dims());
    let size = (CHUNK_BYTES / (4 * width)).max(1);
    let of_logits = of_logits.transpose();
    if vocabulary <= size {
        let product = widened(of_logits.matmul(rows));
        return match sum {
            None => product,
            Some(sum) => sum + product,
        };
    }
    let first = sum.is_none();
    let mut sum = sum.unwrap_or_else(|| {
        let dtype = widened(rows.clone().narrow(0, 0, 1)).dtype();
        Tensor::zeros([vocabulary, width], (&rows.device(), dtype))
    });
    for start in (0..vocabulary).step_by(size) {
        let piece = start..(start + size).min(vocabulary);
        let product = of_logits.clone().narrow(0, start, piece.len());
        let mut product = widened(product.matmul(rows.clone()));
        if !first {
            product = sum.clone().narrow(0, start, piece.len()) + product;
        }
        sum = sum.slice_assign([piece, 0..width], product);
    }
    sum
}
