//! One variable's optimizer with what it remembers of each parameter.
//!
//! Burn's `ModuleOptimizer` cannot forget the moments of a parameter, which LISA must; so this holds
//! Burn's per-parameter optimizer and the moments apart.
//!
//! Half precision has 8 (bfloat16) or 11 significant bits: an update below a 512th of a parameter would be
//! rounded away, step after step. A parameter stored so is moved in float32, on a master copy that is kept
//! as long as its moments, and takes the master's rounded value (Micikevicius et al., "Mixed Precision
//! Training", arXiv 1710.03740).

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{DynOptimizer, DynState, GradientsParams, StateSink};
use burn::tensor::{FloatDType, Tensor};

use super::gradients::widened;
use super::update::Update;

pub(crate) struct Optimizer {
    rule: Arc<dyn DynOptimizer>,
    states: HashMap<ParamId, State>,
}

/// What is remembered of a parameter from one of its steps to the next.
#[derive(Default)]
struct State {
    moments: Option<DynState>,
    /// The parameter in float32, flat; only where it is stored in half precision.
    master: Option<Tensor<1>>,
}

impl Optimizer {
    pub fn new(update: &Update) -> Self {
        Self {
            rule: update.rule(),
            states: HashMap::new(),
        }
    }

    /// Takes one step on every parameter that has a gradient.
    pub fn step<M: Module>(&mut self, rate: f64, module: M, gradients: GradientsParams) -> M {
        module.map(&mut Step {
            optimizer: self,
            rate,
            gradients,
        })
    }

    /// Forgets the moments and masters of all parameters but those for which `keep` holds.
    pub fn retain(&mut self, keep: impl Fn(&ParamId) -> bool) {
        self.states.retain(|id, _| keep(id));
    }

    /// Bytes of the tensors of moments and masters.
    pub fn bytes(&self) -> usize {
        let mut sink = StateSink::default();
        let mut masters = 0;
        for State { moments, master } in self.states.values() {
            if let Some(moments) = moments {
                self.rule.state_flatten("", moments, &mut sink);
            }
            if let Some(master) = master {
                masters += master.shape().num_elements() * size_of::<f32>();
            }
        }
        let moments = sink.tensors.iter().map(|(_, data)| data.bytes().len());
        masters + moments.sum::<usize>()
    }
}

struct Step<'a> {
    optimizer: &'a mut Optimizer,
    rate: f64,
    gradients: GradientsParams,
}

impl ModuleMapper for Step<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = self.gradients.remove::<D>(param.id) else {
            return param;
        };
        let Optimizer { rule, states } = &mut *self.optimizer;
        let (id, value, mapper) = param.consume();
        let checkpointing = value.gradient_checkpointing_strategy();
        let device = gradient.device();
        let stored: FloatDType = value.dtype().into();
        let State { moments, master } = states.remove(&id).unwrap_or_default();
        let moments = moments.map(|moments| rule.to_device_dyn(moments, &device));
        let wide = match master {
            Some(master) => master.to_device(&device).reshape(value.shape()),
            None => widened(value.inner()),
        };
        let gradient = gradient.cast(wide.dtype());
        let (wide, moments) = rule.step_dyn(
            D,
            self.rate,
            wide.into_bridge(),
            gradient.into_bridge(),
            moments,
        );
        let wide = Tensor::<D>::from_bridge(wide);
        let has_master = FloatDType::from(wide.dtype()) != stored;
        let master = has_master.then(|| wide.clone().reshape([-1]));
        if moments.is_some() || has_master {
            states.insert(id, State { moments, master });
        }
        let mut value = Tensor::from_inner(wide.cast(stored));
        if let Some(strategy) = checkpointing {
            value = value.with_gradient_checkpointing_strategy(strategy);
        }
        Param::from_mapped_value(id, value.require_grad(), mapper)
    }
}

impl std::fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optimizer")
            .field("parameters", &self.states.len())
            .finish_non_exhaustive()
    }
}
