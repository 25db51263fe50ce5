//! A variable of the run: a module, the optimizer that moves it, and the parameters that may move.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

#[cfg(feature = "llm")]
use super::direction::direction;
use super::optimizer::Optimizer;
use super::precondition::precondition;
use super::update::Update;
use crate::offload::bytes_of;
use crate::{Error, Offload, Result};

#[derive(Debug)]
pub(crate) struct Variable<M> {
    /// `None` only inside [`Variable::replace`].
    module: Option<M>,
    pub(super) optimizer: Optimizer,
    /// Parameters that required a gradient at the start; layer sampling chooses among them, so that
    /// what the user froze (a LoRA base, for instance) stays frozen.
    pub(super) trainable: HashSet<ParamId>,
}

impl<M: Module> Variable<M> {
    pub fn new(module: M, update: &Update, name: &'static str) -> Result<Self> {
        let mut collector = Trainable::default();
        module.visit(&mut collector);
        if collector.0.is_empty() {
            return Err(Error::NotTrainable { variable: name });
        }
        Ok(Self {
            module: Some(module),
            optimizer: Optimizer::new(update),
            trainable: collector.0,
        })
    }

    /// An upper variable with its update rule, both checked.
    pub fn upper(module: M, update: &Update) -> Result<Self> {
        update.validate("update of the upper variable")?;
        Self::new(untied(module), update, "upper variable")
    }

    /// A lower variable with its update rule, both checked.
    pub fn lower(module: M, update: &Update) -> Result<Self> {
        update.validate("update of the lower variable")?;
        Self::new(untied(module), update, "lower variable")
    }

    #[expect(
        clippy::expect_used,
        reason = "`replace` puts a module back before it returns"
    )]
    pub fn module(&self) -> &M {
        self.module.as_ref().expect("a module between two updates")
    }

    #[expect(
        clippy::expect_used,
        reason = "`replace` puts a module back before it returns"
    )]
    pub fn into_module(self) -> M {
        self.module.expect("a module between two updates")
    }

    /// Moves the module through `update`. A second handle of it would defeat updates in place and
    /// cost a model of memory.
    pub(super) fn replace(&mut self, update: impl FnOnce(M, &mut Optimizer) -> M) {
        if let Some(module) = self.module.take() {
            self.module = Some(update(module, &mut self.optimizer));
        }
    }

    /// Takes one step of the optimizer.
    pub fn step(&mut self, rate: f64, gradients: GradientsParams) {
        self.replace(|module, optimizer| optimizer.step(rate, module, gradients));
    }

    /// Lets the parameters of `group` train and freezes all others, dropping their moments and masters
    /// unless they are to be kept. What is offloaded goes to its place.
    pub fn activate(&mut self, group: &ParamGroup, keep_moments: bool) {
        self.place(Some(group), keep_moments);
    }

    /// Keeps parameters on a host while they do not train. They go there when layers are drawn next, or by
    /// [`settle`](Self::settle).
    pub fn offload(&mut self, offload: Option<Offload>) {
        self.optimizer.offload = offload;
    }

    /// What was said to [`offload`](Self::offload).
    pub fn offloaded(&self) -> Option<&Offload> {
        self.optimizer.offload.as_ref()
    }

    /// Brings what is offloaded to its place; what trains stays as it is.
    pub fn settle(&mut self) {
        if self.optimizer.offload.is_some() {
            self.place(None, true);
        }
    }

    fn place(&mut self, group: Option<&ParamGroup>, keep_moments: bool) {
        let mut activation = Activation {
            path: Vec::new(),
            group,
            trainable: &self.trainable,
            offload: self.optimizer.offload.as_ref(),
            active: HashSet::new(),
            places: Vec::new(),
        };
        if let Some(module) = self.module.take() {
            self.module = Some(module.map(&mut activation));
        }
        let Activation { active, places, .. } = activation;
        if !keep_moments {
            self.optimizer.retain(|id| active.contains(id));
        }
        for (id, device) in places {
            self.optimizer.put(id, &device);
        }
    }

    /// `v`, multiplied by the slope of Adam's update in its gradient if `update`, which moves this variable, is Adam;
    /// `gradient` is that of the step to come.
    pub fn precondition(
        &self,
        update: &Update,
        gradient: &GradientsParams,
        v: GradientsParams,
    ) -> GradientsParams {
        precondition(self.module(), update, &self.optimizer, gradient, v)
    }

    /// The direction against which `update`, which moves this variable, would go with this gradient at its next step; no
    /// moment changes.
    #[cfg(feature = "llm")]
    pub fn direction(&self, update: &Update, gradient: GradientsParams) -> GradientsParams {
        direction(self.module(), update, &self.optimizer, gradient)
    }

    /// Bytes of the optimizer's moments and masters.
    pub fn moment_bytes(&self) -> usize {
        self.optimizer.bytes(None)
    }

    /// Bytes of parameters, moments and masters that are on a device.
    pub fn bytes_on(&self, device: &Device) -> usize {
        let mut sum = SumOn { device, bytes: 0 };
        self.module().visit(&mut sum);
        sum.bytes + self.optimizer.bytes(Some(device))
    }
}

#[derive(Default)]
struct Trainable(HashSet<ParamId>);

impl ModuleVisitor for Trainable {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.val().is_require_grad() {
            self.0.insert(param.id);
        }
    }
}

struct SumOn<'a> {
    device: &'a Device,
    bytes: usize,
}

impl ModuleVisitor for SumOn<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if value.device() == *self.device {
            self.bytes += bytes_of(&value);
        }
    }
}

struct Activation<'a> {
    path: Vec<String>,
    /// What trains from now on; nothing for what trains already.
    group: Option<&'a ParamGroup>,
    trainable: &'a HashSet<ParamId>,
    offload: Option<&'a Offload>,
    active: HashSet<ParamId>,
    /// Where what the optimizer remembers belongs.
    places: Vec<(ParamId, Device)>,
}

impl ModuleMapper for Activation<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.trainable.contains(&param.id) {
            return param;
        }
        let path = self.path.join(".");
        let active = match self.group {
            Some(group) => group.matches(&param.id, Some(&path)),
            None => param.is_require_grad(),
        };
        if active {
            self.active.insert(param.id);
        }
        let param = match self.offload {
            Some(offload) => self.carried(offload, param, &path, active),
            None => param,
        };
        if active == param.is_require_grad() {
            return param;
        }
        param.set_require_grad(active)
    }
}

impl Activation<'_> {
    /// The parameter where it belongs.
    fn carried<const D: usize>(
        &mut self,
        offload: &Offload,
        param: Param<Tensor<D>>,
        path: &str,
        active: bool,
    ) -> Param<Tensor<D>> {
        let here = param.val().device();
        let device = offload.place(path, active).unwrap_or(&here);
        let of_moments = offload.place_of_moments(device);
        self.places.push((param.id, of_moments.clone()));
        if here == *device {
            return param;
        }
        let (id, value, mapper) = param.consume();
        let trains = value.is_require_grad();
        // Without its leaf of the tape, which would be moved too.
        let value = value.detach().set_require_grad(false);
        let value = offload.moved().carry(value, device);
        Param::from_mapped_value(id, value.set_require_grad(trains), mapper)
    }
}

/// A copy of `module` with parameter ids and gradients of its own: the auxiliary variable at the start.
/// The values are shared until the first update.
pub(crate) fn auxiliary_of<M: Module>(module: &M) -> M {
    module.clone().map(&mut Fresh { ids: true })
}

/// `module` with gradients of its own: a clone of it, be it the other variable or held by an objective,
/// would get a share of them.
pub(super) fn untied<M: Module>(module: M) -> M {
    module.map(&mut Fresh { ids: false })
}

struct Fresh {
    ids: bool,
}

impl ModuleMapper for Fresh {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        let id = if self.ids { ParamId::new() } else { id };
        let require_grad = value.is_require_grad();
        let value = value.detach().set_require_grad(require_grad);
        Param::from_mapped_value(id, value, mapper)
    }
}
