//! The floating types that a model can be computed in.

use std::{fmt, str::FromStr};

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{DType, Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The floating type of a model's parameters and activations, called as in transformers.
///
/// With [`Bfloat16`](Self::Bfloat16) a model takes half the memory. Softmax, the statistics of norms and the loss are still
/// computed in float32, and the solver moves the parameters on float32 masters with float32 moments, so that no update is too
/// small to count. Losses carry the rounding of activations, a few thousandths of a nat, and so does the difference of the
/// source losses of `w` and `u`, from which weights are learned: where that difference is smaller (a small learning rate,
/// the first steps), the weights' gradient is mostly noise, and more steps are needed than in float32. float16 is not offered: gradients of language models fall below its smallest number unless losses are
/// scaled.
///
/// # Example
///
/// ```
/// use scalebio::models::Dtype;
///
/// assert_eq!("bf16".parse::<Dtype>()?, Dtype::Bfloat16);
/// assert_eq!(Dtype::Bfloat16.to_string(), "bfloat16");
/// assert!("int8".parse::<Dtype>().is_err());
/// # Ok::<(), scalebio::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Dtype {
    /// 32 bits, `float32` (also read: `f32`).
    #[default]
    Float32,
    /// The upper 16 of these, `bfloat16` (also read: `bf16`).
    Bfloat16,
}

impl Dtype {
    /// That a device can compute in this type: an error now, and no panic at the first tensor.
    pub(crate) fn check(self, device: &Device) -> Result<()> {
        if device.supports_dtype(DType::from(self)) {
            return Ok(());
        }
        let allowed = "float32 on this device";
        let remedy = "use another device: flex, or a GPU that has this type";
        Err(Error::setting("dtype", self, allowed, remedy))
    }

    /// The type in which all of a module can be stored without loss.
    pub(super) fn of<M: Module>(module: &M) -> Self {
        let mut all = AllBfloat16(true);
        module.visit(&mut all);
        if all.0 { Self::Bfloat16 } else { Self::Float32 }
    }

    /// Bytes of a number.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 => 2,
        }
    }
}

impl From<Dtype> for &'static str {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
        }
    }
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::F32,
            Dtype::Bfloat16 => Self::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad((*self).into())
    }
}

/// # Errors
/// [`Error::Setting`] for any other name.
impl FromStr for Dtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "float32" | "f32" => Ok(Self::Float32),
            "bfloat16" | "bf16" => Ok(Self::Bfloat16),
            _ => Err(Error::setting(
                "dtype",
                format!("`{name}`"),
                "float32 or bfloat16 (bf16)",
                "choose bfloat16 to halve the memory of the model",
            )),
        }
    }
}

impl TryFrom<String> for Dtype {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

/// The module with its parameters rounded to a type, one at a time. They stay trainable or frozen.
pub(super) fn cast<M: Module>(module: M, dtype: Dtype) -> M {
    module.map(&mut Cast(dtype.into()))
}

struct Cast(DType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let require_grad = value.is_require_grad();
        let value = value.detach().set_require_grad(false).cast(self.0);
        Param::from_mapped_value(id, value.set_require_grad(require_grad), mapper)
    }
}

struct AllBfloat16(bool);

impl ModuleVisitor for AllBfloat16 {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 = self.0 && param.val().dtype() == DType::BF16;
    }
}
