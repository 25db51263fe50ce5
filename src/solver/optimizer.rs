//! One variable's optimizer with its moments, by parameter.
//!
//! Burn's `ModuleOptimizer` cannot forget the moments of a parameter, which LISA must; so this holds
//! Burn's per-parameter optimizer and the moments apart.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{DynOptimizer, DynState, GradientsParams, StateSink};
use burn::tensor::Tensor;

use super::update::Update;

pub(crate) struct Optimizer {
    rule: Arc<dyn DynOptimizer>,
    moments: HashMap<ParamId, DynState>,
}

impl Optimizer {
    pub fn new(update: &Update) -> Self {
        Self {
            rule: update.rule(),
            moments: HashMap::new(),
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

    /// What the optimizer remembers of a parameter.
    pub fn moments(&self, id: &ParamId) -> Option<&DynState> {
        self.moments.get(id)
    }

    /// Forgets the moments of all parameters but those for which `keep` holds.
    pub fn retain(&mut self, keep: impl Fn(&ParamId) -> bool) {
        self.moments.retain(|id, _| keep(id));
    }

    /// Bytes of the moments' tensors.
    pub fn bytes(&self) -> usize {
        let mut sink = StateSink::default();
        for state in self.moments.values() {
            self.rule.state_flatten("", state, &mut sink);
        }
        sink.tensors
            .iter()
            .map(|(_, data)| data.bytes().len())
            .sum()
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
        let Optimizer { rule, moments } = &mut *self.optimizer;
        let (id, value, mapper) = param.consume();
        let checkpointing = value.gradient_checkpointing_strategy();
        let device = gradient.device();
        let state = moments
            .remove(&id)
            .map(|state| rule.to_device_dyn(state, &device));
        let (value, state) = rule.step_dyn(
            D,
            self.rate,
            value.inner().into_bridge(),
            gradient.into_bridge(),
            state,
        );
        if let Some(state) = state {
            moments.insert(id, state);
        }
        let mut value = Tensor::from_inner(Tensor::<D>::from_bridge(value));
        if let Some(strategy) = checkpointing {
            value = value.with_gradient_checkpointing_strategy(strategy);
        }
        Param::from_mapped_value(id, value.require_grad(), mapper)
    }
}

impl std::fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Optimizer")
            .field("parameters", &self.moments.len())
            .finish_non_exhaustive()
    }
}
