//! A variable of the run: a module, the optimizer that moves it, and the parameters that may move.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

#[cfg(feature = "llm")]
use super::direction::direction;
use super::optimizer::Optimizer;
use super::precondition::precondition;
use super::update::Update;
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct Variable<M> {
    /// `None` only inside [`Variable::replace`].
    module: Option<M>,
    optimizer: Optimizer,
    /// Parameters that required a gradient at the start; layer sampling chooses among them, so that
    /// what the user froze (a LoRA base, for instance) stays frozen.
    trainable: HashSet<ParamId>,
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
    fn replace(&mut self, update: impl FnOnce(M, &mut Optimizer) -> M) {
        if let Some(module) = self.module.take() {
            self.module = Some(update(module, &mut self.optimizer));
        }
    }

    /// Takes one step of the optimizer.
    pub fn step(&mut self, rate: f64, gradients: GradientsParams) {
        self.replace(|module, optimizer| optimizer.step(rate, module, gradients));
    }

    /// Lets the parameters of `group` train and freezes all others, dropping their moments and masters
    /// unless they are to be kept.
    pub fn activate(&mut self, group: &ParamGroup, keep_moments: bool) {
        let mut activation = Activation {
            path: Vec::new(),
            group,
            trainable: &self.trainable,
            active: HashSet::new(),
        };
        if let Some(module) = self.module.take() {
            self.module = Some(module.map(&mut activation));
        }
        if !keep_moments {
            let active = activation.active;
            self.optimizer.retain(|id| active.contains(id));
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
        self.optimizer.bytes()
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

struct Activation<'a> {
    path: Vec<String>,
    group: &'a ParamGroup,
    trainable: &'a HashSet<ParamId>,
    active: HashSet<ParamId>,
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
        let active = self.group.matches(&param.id, Some(&self.path.join(".")));
        if active {
            self.active.insert(param.id);
        }
        if active == param.is_require_grad() {
            return param;
        }
        param.set_require_grad(active)
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
