//! Checkpoints of a run, from which it resumes bit for bit.

mod folder;
mod tensors;
mod variable;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use burn::module::Module;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::folder::{STATE, Staged, TENSORS, Whole};
use self::tensors::{Described, Tensors, write_header};
use self::variable::{Put, Saved};
use super::run::{Run, share};
use super::scalebio::ScaleBio;
use super::variable::{Variable, auxiliary_of, untied};
use crate::{Bilevel, Error, LowerObjective, Result, UpperObjective, catch_lost_device};

/// How far the draws of a run have come; `None` for what cannot say.
#[derive(Clone, Debug, Default)]
pub(super) struct Drawn {
    upper: Option<String>,
    lower: Option<String>,
    layers: Option<String>,
}

/// All of a run but its tensors. Floats are texts, which come back with all their bits.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: usize,
    reach: String,
    method: BTreeMap<String, String>,
    draws: BTreeMap<String, String>,
    upper: Saved,
    lower: Saved,
    auxiliary: Saved,
    /// What a program around the run adds.
    note: Value,
}

/// A name for a run that no other run has.
pub(super) fn new_name() -> String {
    // Keyed by the operating system's random numbers.
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

impl<F, G, X, W> Run<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    /// Writes all that [`ScaleBio::resume`] needs to go on bit for bit in another process: the three variables, what their
    /// optimizers remember, which layers train, and how far the draws have come. Returns the new folder in `dir`.
    ///
    /// A checkpoint is written under a temporary name and renamed when it is on the disk, so that it is whole or not
    /// there, also after a power failure. The last two of the run are kept; nothing else in `dir` is touched. After a
    /// step that failed, the checkpoint is of the state before that step: resumed, the run takes the step again.
    ///
    /// One tensor at a time is copied. `u` takes no room where it is still equal to `w`.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for an objective or a layer sampler that does not say how far its draws have come (closures do,
    /// as they draw nothing); [`Error::Io`] or [`Error::File`] for what cannot be written, and for a folder that holds
    /// checkpoints of another run.
    pub fn checkpoint(&self, dir: impl AsRef<Path>) -> Result<PathBuf> {
        self.checkpoint_with(dir.as_ref(), Value::Null)
    }

    /// A checkpoint that also holds a note.
    pub(crate) fn checkpoint_with(&self, dir: &Path, note: Value) -> Result<PathBuf> {
        catch_lost_device(|| self.write_checkpoint(dir, note))
    }

    fn write_checkpoint(&self, dir: &Path, note: Value) -> Result<PathBuf> {
        let draws = self.draws()?;
        let mut tensors = Vec::new();
        let [upper, lower, auxiliary] = self.save(&mut |name, data| {
            tensors.push(Described::new(name, &data));
            Ok(())
        })?;
        let state = State {
            step: self.steps,
            reach: self.reach.to_string(),
            method: self.method.described(),
            draws,
            upper,
            lower,
            auxiliary,
            note,
        };
        let mut staged = Staged::create(dir, &self.name, self.steps)?;
        staged.write(TENSORS, |path, file| {
            write_header(path, file, &tensors)?;
            self.save(&mut |_, data| {
                let written = file.write_all(data.as_bytes());
                written.map_err(|e| Error::io(path, e))
            })?;
            Ok(())
        })?;
        staged.write(STATE, |path, file| {
            let written = serde_json::to_writer(file, &state);
            written.map_err(|e| Error::file(path, e))
        })?;
        staged.commit()
    }

    fn save(&self, put: &mut Put) -> Result<[Saved; 3]> {
        Ok([
            variable::save(&self.upper, "upper", None, put)?,
            variable::save(&self.lower, "lower", None, put)?,
            variable::save(&self.auxiliary, "auxiliary", Some(&self.lower), put)?,
        ])
    }

    /// How far the draws have come.
    pub(super) fn drawn(&self) -> Drawn {
        Drawn {
            upper: self.problem.upper.progress(),
            lower: self.problem.lower.progress(),
            layers: self.method.layers.progress(),
        }
    }

    /// How far the draws had come at the last good state, by who drew.
    fn draws(&self) -> Result<BTreeMap<String, String>> {
        let now = self.drawn();
        let drawn = if self.failed { &self.before } else { &now };
        let mut draws = BTreeMap::new();
        for (name, progress) in [
            ("upper objective", &drawn.upper),
            ("lower objective", &drawn.lower),
            ("layer sampler", &drawn.layers),
        ] {
            let Some(progress) = progress else {
                return Err(Error::setting(
                    "checkpoint",
                    format!("asked of a run whose {name} does not say how far its draws have come"),
                    "of one whose objectives and layer sampler implement `progress` and `resume`",
                    "see `UpperObjective::progress`; for draws of `Minibatches` both are one line",
                ));
            };
            draws.insert(name.to_owned(), progress.clone());
        }
        Ok(draws)
    }
}

impl ScaleBio {
    /// Goes on with a run from the newest of its checkpoints in `dir`, bit for bit as if it had not been interrupted.
    /// `dir` is the folder that was given to [`Run::checkpoint`], or one checkpoint in it.
    ///
    /// Everything else is as for [`start`](Self::start) when the run began: the method with the same settings, the
    /// problem, whose draws go on where they stood, and the two variables, whose values are replaced. (Values of integers
    /// and booleans in a module are those of the argument: a run does not change them.) A checkpoint whose files are
    /// damaged is passed over for the one before; [`Run::steps`] tells where the run stands.
    ///
    /// "Bit for bit" holds for the same build of the program on the same kind of machine.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start); [`Error::Io`] or [`Error::File`], which name the file, for a folder without a whole
    /// checkpoint and for one of another version, method or problem, with what differs.
    ///
    /// # Example
    ///
    /// ```
    /// # use burn::{module::Param, tensor::{Device, Tensor}};
    /// # use scalebio::{Bilevel, ScaleBio, Update};
    /// # type Vector = Param<Tensor<1>>;
    /// # let device = Device::flex().autodiff();
    /// # let problem = || Bilevel {
    /// #     upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
    /// #     lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    /// # };
    /// # let zeros = || Vector::from_data([0.0, 0.0], &device);
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let dir = folder.path().join("checkpoints");
    /// let method = || ScaleBio::new(Update::adamw(0.1), Update::adamw(0.02));
    /// let mut run = if dir.exists() {
    ///     method().resume(&dir, problem(), zeros(), zeros())?
    /// } else {
    ///     method().start(problem(), zeros(), zeros())?
    /// };
    /// while run.steps() < 200 {
    ///     let steps = run.by_ref().take(50);
    ///     steps.collect::<scalebio::Result<Vec<_>>>()?;
    ///     run.checkpoint(&dir)?;
    /// }
    /// # assert_eq!(method().resume(&dir, problem(), zeros(), zeros())?.steps(), 200);
    /// # Ok::<(), scalebio::Error>(())
    /// ```
    pub fn resume<F, G, X, W>(
        self,
        dir: impl AsRef<Path>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
    ) -> Result<Run<F, G, X, W>>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        self.resume_apart(dir, problem, upper, lower, Ok)
    }

    /// Goes on with a run as [`resume`](Self::resume) does, with `u` elsewhere than `w`, as in
    /// [`start_apart`](Self::start_apart). The devices may be others than those of the run before; results are then the same
    /// up to rounding.
    ///
    /// # Errors
    ///
    /// Those of [`resume`](Self::resume) and of `place`.
    pub fn resume_apart<F, G, X, W>(
        self,
        dir: impl AsRef<Path>,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
        place: impl FnOnce(W) -> Result<W>,
    ) -> Result<Run<F, G, X, W>>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        Checkpoint::newest(dir.as_ref())?.resume(self, problem, upper, lower, place)
    }

    /// The settings, as texts.
    fn described(&self) -> BTreeMap<String, String> {
        let settings = [
            ("update of the upper variable", self.upper.to_string()),
            ("update of the lower variable", self.lower.to_string()),
            (
                "update of the auxiliary variable",
                self.auxiliary.to_string(),
            ),
            ("penalty", format!("{:?}", self.penalty)),
            ("moments", format!("{:?}", self.moments)),
            ("clip", format!("{:?}", self.clip)),
        ];
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .into()
    }
}

/// A whole checkpoint, its state read.
#[derive(Debug)]
#[cfg_attr(not(feature = "llm"), allow(dead_code))] // only training says what was passed over
pub(crate) struct Checkpoint {
    whole: Whole,
    state: State,
    damaged: Vec<Error>,
}

impl Checkpoint {
    /// The newest one in `dir` that is whole.
    pub fn newest(dir: &Path) -> Result<Self> {
        let (whole, damaged) = folder::newest(dir)?;
        let path = whole.path.join(STATE);
        let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let state: State = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))?;
        if state.step != whole.step {
            let message = format!(
                "is of step {}, but the checkpoint is of step {}",
                state.step, whole.step
            );
            return Err(Error::file(&path, message));
        }
        Ok(Self {
            whole,
            state,
            damaged,
        })
    }

    /// Its folder.
    #[cfg(feature = "llm")]
    pub fn path(&self) -> &Path {
        &self.whole.path
    }

    /// The steps that had been taken.
    #[cfg(feature = "llm")]
    pub fn step(&self) -> usize {
        self.state.step
    }

    /// What was given to [`Run::checkpoint_with`].
    #[cfg(feature = "llm")]
    pub fn note(&self) -> &Value {
        &self.state.note
    }

    /// What is wrong with newer ones, which are therefore passed over.
    #[cfg(feature = "llm")]
    pub fn damaged(&self) -> &[Error] {
        &self.damaged
    }

    /// The run as it was when the checkpoint was written.
    pub fn resume<F, G, X, W>(
        &self,
        method: ScaleBio,
        problem: Bilevel<F, G>,
        upper: X,
        lower: W,
        place: impl FnOnce(W) -> Result<W>,
    ) -> Result<Run<F, G, X, W>>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        catch_lost_device(|| self.restore(method, problem, upper, lower, place))
    }

    fn restore<F, G, X, W>(
        &self,
        mut method: ScaleBio,
        mut problem: Bilevel<F, G>,
        upper: X,
        lower: W,
        place: impl FnOnce(W) -> Result<W>,
    ) -> Result<Run<F, G, X, W>>
    where
        F: UpperObjective<X, W>,
        G: LowerObjective<X, W>,
        X: Module,
        W: Module,
    {
        method.validate()?;
        self.compare(&method)?;
        let drawn = |name: &str| self.state.draws.get(name).map_or("", String::as_str);
        let of_state = |error| self.refused(error);
        let (f, g) = (&mut problem.upper, &mut problem.lower);
        f.resume(drawn("upper objective")).map_err(of_state)?;
        g.resume(drawn("lower objective")).map_err(of_state)?;
        let layers = method.layers.resume(drawn("layer sampler"));
        layers.map_err(of_state)?;

        let tensors = Tensors::open(&self.whole.path.join(TENSORS))?;
        let saved = &self.state;
        let mut upper = Variable::new(untied(upper), &method.upper, "upper variable")?;
        variable::restore(&mut upper, "upper", &saved.upper, &tensors, false)?;
        let mut lower = Variable::new(untied(lower), &method.lower, "lower variable")?;
        variable::restore(&mut lower, "lower", &saved.lower, &tensors, false)?;
        // A copy of the restored `w`, so that what is still equal shares its memory, as at the start.
        let auxiliary = untied(place(auxiliary_of(lower.module()))?);
        let mut auxiliary = Variable::new(auxiliary, &method.auxiliary, "lower variable")?;
        variable::restore(
            &mut auxiliary,
            "auxiliary",
            &saved.auxiliary,
            &tensors,
            true,
        )?;
        variable::activate(&mut upper, &saved.upper);
        variable::activate(&mut lower, &saved.lower);
        variable::activate(&mut auxiliary, &saved.auxiliary);

        let reach = saved.reach.parse().map_err(|e| {
            let message = format!("reach `{}`: {e}", saved.reach);
            Error::file(&self.whole.path.join(STATE), message)
        })?;
        let name = self.whole.run.clone();
        share(&mut problem, &method.ranks)?;
        let mut run = Run::of(method, problem, upper, lower, auxiliary);
        (run.steps, run.reach, run.name) = (saved.step, reach, name);
        run.first = run.steps;
        Ok(run)
    }

    fn compare(&self, method: &ScaleBio) -> Result<()> {
        let (found, here) = (&self.state.method, method.described());
        let none = String::from("nothing");
        for name in found.keys().chain(here.keys()) {
            let [found, here] = [found, &here].map(|method| method.get(name).unwrap_or(&none));
            if found != here {
                let message = format!(
                    "the {name} is {found} in the checkpoint, but {here} here; resume with the settings of the run"
                );
                return Err(Error::file(&self.whole.path.join(STATE), message));
            }
        }
        Ok(())
    }

    /// An error about what the checkpoint says, with its place.
    fn refused(&self, error: Error) -> Error {
        Error::file(&self.whole.path.join(STATE), error)
    }
}
