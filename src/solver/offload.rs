//! A run whose frozen parameters wait in host memory.

use burn::module::Module;
use burn::tensor::Device;

use super::run::Run;
use crate::offload::Moved;
use crate::{LowerObjective, Offload, UpperObjective};

impl<F, G, X, W> Run<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    /// Keeps parameters of `u` and `w` on a host while they are frozen, and brings them to their device for the steps in
    /// which they train, as `of` says of each variable. The device then holds the active blocks; the price of it is
    /// [`Step::bytes_moved`](crate::Step::bytes_moved). Parameters and moments that went and came back are the same, bit for
    /// bit. Nothing is moved before the first step of a run.
    ///
    /// The module must be able to compute with parameters on the host, as language models after
    /// `CausalLm::offload` are; for those `of` is `CausalLm::offloaded`. Without a
    /// [layer sampler](crate::ScaleBio::layers) everything trains, and nothing stays on the host but what was frozen from the
    /// start.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use scalebio::burn::tensor::Device;
    /// use scalebio::models::CausalLm;
    /// use scalebio::reweight::{self, Draws, SourceWeights, TokenSources};
    /// use scalebio::{Lisa, ScaleBio, Update};
    ///
    /// # fn draws() -> Draws<TokenSources> { todo!() }
    /// let (gpu, host) = (scalebio::device("wgpu")?.autodiff(), Device::flex().autodiff());
    /// let model = CausalLm::from_pretrained("path/to/model", &host)?.offload(&[gpu.clone()], &host)?;
    /// let lisa = Lisa::over(&model, &model.blocks_path())?;
    /// let weights = SourceWeights::uniform(["books", "web"], &gpu)?;
    /// let run = ScaleBio::new(Update::adamw(1e-2), Update::adamw(1e-5))
    ///     .layers(lisa)
    ///     .start(reweight::problem(draws(), draws())?, weights, model)?
    ///     .offload(CausalLm::offloaded);
    /// for step in run.take(10) {
    ///     println!("{:?} bytes moved", step?.bytes_moved());
    /// }
    /// # Ok::<(), scalebio::Error>(())
    /// ```
    pub fn offload(mut self, of: impl Fn(&W) -> Option<Offload>) -> Self {
        for variable in [&mut self.lower, &mut self.auxiliary] {
            variable.offload(of(variable.module()));
            // A run that goes on: what trained when it was interrupted trains on.
            if self.steps > 0 {
                variable.settle();
            }
        }
        self
    }

    /// Bytes on a device of the parameters of all three variables, of moments and of masters. Memory that `u` still shares
    /// with `w` counts for both. Costs what [`moment_bytes`](Self::moment_bytes) does.
    pub fn bytes_on(&self, device: &Device) -> usize {
        let of_models = self.lower.bytes_on(device) + self.auxiliary.bytes_on(device);
        of_models + self.upper.bytes_on(device)
    }

    /// Bytes that were moved to and from hosts so far, if something is offloaded. `u` and `w` may count together.
    pub(super) fn bytes_moved(&self) -> Option<u64> {
        let [w, u] =
            [&self.lower, &self.auxiliary].map(|variable| variable.offloaded().map(Offload::moved));
        match (w, u) {
            (Some(w), Some(u)) if !w.is(u) => Some(w.bytes() + u.bytes()),
            (w, u) => w.or(u).map(Moved::bytes),
        }
    }
}
