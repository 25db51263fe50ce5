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
#[cfg(feature = "checkpoint")]
use burn::optim::{AdamState, AdamWState, AdaptiveMomentumState, StateSource};
use burn::optim::{DynOptimizer, DynState, GradientsParams, StateSink};
#[cfg(feature = "checkpoint")]
use burn::tensor::TensorData;
use burn::tensor::{Device, FloatDType, Tensor};

use super::gradients::widened;
use super::update::Update;
use crate::Offload;
use crate::offload::bytes_of;

pub(crate) struct Optimizer {
    rule: Arc<dyn DynOptimizer>,
    /// Whether the rule is AdamW; `None` if it is neither that nor Adam.
    #[cfg(feature = "checkpoint")]
    adam: Option<bool>,
    states: HashMap<ParamId, State>,
    /// What is kept on a host; its counter counts what is moved.
    pub(super) offload: Option<Offload>,
}

/// What is remembered of a parameter from one of its steps to the next.
struct State {
    moments: Option<DynState>,
    /// The parameter in float32, flat; only where it is stored in half precision.
    master: Option<Tensor<1>>,
    /// Where both are.
    device: Device,
    /// Bytes of both. Burn tells those of moments by a copy only, so they are counted when they are first moved.
    bytes: Option<usize>,
}

impl Optimizer {
    pub fn new(update: &Update) -> Self {
        Self {
            rule: update.rule(),
            #[cfg(feature = "checkpoint")]
            adam: update.adam_family().map(|(_, decoupled)| decoupled),
            states: HashMap::new(),
            offload: None,
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
        self.states.get(id)?.moments.as_ref()
    }

    /// Forgets the moments and masters of all parameters but those for which `keep` holds.
    pub fn retain(&mut self, keep: impl Fn(&ParamId) -> bool) {
        self.states.retain(|id, _| keep(id));
    }

    /// Brings what is remembered of a parameter to a device.
    pub fn put(&mut self, id: ParamId, device: &Device) {
        if let Some(state) = self.states.remove(&id) {
            let state = state.carried(&*self.rule, device, self.offload.as_ref());
            self.states.insert(id, state);
        }
    }

    /// What is remembered of a parameter, taken apart: tensors and numbers of its moments by name, and its master.
    #[cfg(feature = "checkpoint")]
    pub fn taken_apart(&self, id: &ParamId) -> (StateSink, Option<TensorData>) {
        let mut sink = StateSink::default();
        let Some(State {
            moments, master, ..
        }) = self.states.get(id)
        else {
            return (sink, None);
        };
        if let Some(moments) = moments {
            self.rule.state_flatten("", moments, &mut sink);
        }
        (sink, master.clone().map(Tensor::into_data))
    }

    /// Whether moments on `device` come back exactly. Burn's optimizers read theirs in the device's own float type; those of
    /// Adam are put together here.
    #[cfg(feature = "checkpoint")]
    pub fn comes_back(&self, moments: &StateSink, device: &Device) -> bool {
        let own = || Tensor::<1>::empty([1], device).dtype();
        let mut tensors = moments.tensors.iter();
        self.adam.is_some() || tensors.all(|(_, data)| data.dtype() == own())
    }

    /// Remembers of a parameter of `D` dimensions on `device` what [`taken_apart`](Self::taken_apart) gave. `false`
    /// if the optimizer cannot be brought back to exactly this.
    #[cfg(feature = "checkpoint")]
    pub fn put_together<const D: usize>(
        &mut self,
        id: ParamId,
        device: &Device,
        sink: StateSink,
        master: Option<TensorData>,
    ) -> bool {
        let master = master.map(|data| {
            let options = (device, data.dtype());
            Tensor::from_data(data, options)
        });
        let moments = if sink.tensors.is_empty() && sink.scalars.is_empty() {
            None
        } else {
            match self.moments_of::<D>(device, &sink) {
                Some(moments) => Some(moments),
                None => return false,
            }
        };
        if moments.is_some() || master.is_some() {
            let state = State {
                moments,
                master,
                device: device.clone(),
                bytes: None,
            };
            self.states.insert(id, state);
        }
        true
    }

    #[cfg(feature = "checkpoint")]
    fn moments_of<const D: usize>(&self, device: &Device, sink: &StateSink) -> Option<DynState> {
        let moments = match self.adam {
            Some(decoupled) => {
                let tensor = |name: &str| {
                    let (_, data) = sink.tensors.iter().find(|(found, _)| found == name)?;
                    let options = (device, data.dtype());
                    (data.rank() == D).then(|| Tensor::<D>::from_data(data.clone(), options))
                };
                let mut scalars = sink.scalars.iter();
                let (_, time) = scalars.find(|(name, _)| name == "momentum.time")?;
                let momentum = AdaptiveMomentumState::new(
                    (*time).try_into().ok()?,
                    tensor("momentum.moment_1")?,
                    tensor("momentum.moment_2")?,
                );
                if decoupled {
                    DynState::create(AdamWState::new(momentum), D)
                } else {
                    DynState::create(AdamState::new(momentum), D)
                }
            }
            None => {
                let mut source = StateSource::new(sink.scalars.iter().cloned().collect());
                for (name, data) in &sink.tensors {
                    source.insert_tensor(name.clone(), data.clone());
                }
                self.rule.state_unflatten(D, "", &mut source, device)?
            }
        };
        let mut back = StateSink::default();
        self.rule.state_flatten("", &moments, &mut back);
        (back.tensors == sink.tensors && back.scalars == sink.scalars).then_some(moments)
    }

    /// Bytes of the tensors of moments and masters: of those on a device, or of all.
    pub fn bytes(&self, on: Option<&Device>) -> usize {
        let states = self.states.values();
        let states = states.filter(|state| on.is_none_or(|device| state.device == *device));
        states.map(|state| state.bytes(&*self.rule)).sum()
    }
}

impl State {
    /// The state on a device, with what is moved counted.
    fn carried(self, rule: &dyn DynOptimizer, device: &Device, offload: Option<&Offload>) -> Self {
        if self.device == *device {
            return self;
        }
        let to = |moments| rule.to_device_dyn(moments, device);
        let mut state = Self {
            moments: self.moments.map(to),
            master: self.master.map(|master| master.to_device(device)),
            device: device.clone(),
            bytes: self.bytes,
        };
        if let Some(offload) = offload {
            let bytes = state.bytes(rule);
            state.bytes = Some(bytes);
            offload.moved().count(bytes);
        }
        state
    }

    /// Bytes of moments and master.
    fn bytes(&self, rule: &dyn DynOptimizer) -> usize {
        self.bytes.unwrap_or_else(|| {
            let mut sink = StateSink::default();
            if let Some(moments) = &self.moments {
                rule.state_flatten("", moments, &mut sink);
            }
            let moments = sink.tensors.iter().map(|(_, data)| data.bytes().len());
            moments.sum::<usize>() + self.master.as_ref().map_or(0, bytes_of)
        })
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
        let Optimizer {
            rule,
            states,
            offload,
            ..
        } = &mut *self.optimizer;
        let (id, value, mapper) = param.consume();
        let checkpointing = value.gradient_checkpointing_strategy();
        let device = gradient.device();
        let stored: FloatDType = value.dtype().into();
        let state = states.remove(&id);
        let state = state.map(|state| state.carried(&**rule, &device, offload.as_ref()));
        let (moments, master, bytes) = match state {
            Some(state) => (state.moments, state.master, state.bytes),
            None => (None, None, None),
        };
        let wide = match master {
            Some(master) => master.reshape(value.shape()),
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
            let mut state = State {
                moments,
                master,
                bytes,
                device: device.clone(),
            };
            if let Some(offload) = offload {
                let place = offload.place_of_moments(&device);
                state = state.carried(&**rule, place, Some(offload));
            }
            states.insert(id, state);
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
