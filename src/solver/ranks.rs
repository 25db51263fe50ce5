//! The evaluation of a step, summed over the ranks of a run.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::take;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

use super::run::Run;
use super::tasks::Evaluation;
use crate::collective::Ranks;
use crate::{Error, LowerObjective, Result, UpperObjective};

/// Numbers that are summed at a time: 32 MB in float32. Large enough that waiting does not count, and small beside a model.
const BUCKET: usize = 1 << 23;

/// What must be equal on all ranks.
const FACTS: [&str; 8] = [
    "the number of steps taken",
    "the version of scalebio or the settings of the method",
    "the draws of the upper objective (their seed, batch or numbers of samples)",
    "the draws of the lower objective (their seed, batch or numbers of samples)",
    "the layers that were drawn",
    "the upper variable",
    "the lower variable at the start",
    "the auxiliary variable at the start",
];

impl<F, G, X, W> Run<F, G, X, W>
where
    F: UpperObjective<X, W>,
    G: LowerObjective<X, W>,
    X: Module,
    W: Module,
{
    /// The sum of the evaluations of all ranks, the same on each of them; for a rank that is alone, its own. An error on one
    /// rank is an error on all: what can fail is over when gradients are summed.
    pub(super) fn over_ranks(&self, evaluation: Result<Evaluation>) -> Result<Evaluation> {
        let ranks = &self.method.ranks;
        if ranks.count() == 1 {
            return evaluation;
        }
        let mut evaluation = match evaluation {
            Ok(evaluation) => evaluation,
            Err(error) => return ranks.together(Err(error)),
        };
        let (x, w, u) = (
            self.upper.module(),
            self.lower.module(),
            self.auxiliary.module(),
        );
        let Evaluation { f_w, g_w, g_u, .. } = &mut evaluation;
        let mut flat = flattened(x, take(&mut f_w.of_upper));
        flat.extend(flattened(x, take(&mut g_w.of_upper)));
        flat.extend(flattened(x, take(&mut g_u.of_upper)));
        flat.extend(flattened(w, take(&mut evaluation.of_w)));
        flat.extend(flattened(u, take(&mut evaluation.of_u)));

        let report = Report {
            facts: self.facts().to_vec(),
            drawn: evaluation.drawn.to_vec(),
            values: [&evaluation.f_w, &evaluation.g_w, &evaluation.g_u]
                .map(|of| [&[of.loss], &*of.parts].concat()),
            present: flat.iter().map(|flat| flat.gradient.is_some()).collect(),
        };
        let own = report.bytes();
        evaluation.bytes = own.len() as u64;
        let sum = Report::sum(&ranks.gather(Ok(own))?)?;
        let Evaluation { f_w, g_w, g_u, .. } = &mut evaluation;
        for (of, values) in [f_w, g_w, g_u].into_iter().zip(sum.values) {
            of.loss = values.first().copied().unwrap_or_default();
            of.parts = values.into_iter().skip(1).collect();
        }
        evaluation.drawn = [sum.drawn[0], sum.drawn[1]];

        let mut buckets = Buckets::new(ranks, flat.len());
        for (flat, present) in flat.into_iter().zip(sum.present) {
            buckets.add(flat, present)?;
        }
        let (bytes, sums) = buckets.finish()?;
        let mut sums = sums.into_iter();
        evaluation.bytes += bytes;
        evaluation.f_w.of_upper = restored(x, &mut sums);
        evaluation.g_w.of_upper = restored(x, &mut sums);
        evaluation.g_u.of_upper = restored(x, &mut sums);
        evaluation.of_w = restored(w, &mut sums);
        evaluation.of_u = restored(u, &mut sums);
        Ok(evaluation)
    }

    /// Checksums of [`FACTS`]. Those of `w` and `u` take a pass over them, so only at the first step.
    fn facts(&self) -> [u64; 8] {
        let at_start = |module: &W| match self.steps == self.first {
            true => checksum(module),
            false => 0,
        };
        [
            self.steps as u64,
            hash(&(env!("CARGO_PKG_VERSION"), format!("{:?}", self.method))),
            hash(&self.problem.upper.progress()),
            hash(&self.problem.lower.progress()),
            hash(&self.method.layers.progress()),
            checksum(self.upper.module()),
            at_start(self.lower.module()),
            at_start(self.auxiliary.module()),
        ]
    }
}

/// What a rank tells the others before gradients are summed.
#[derive(Debug, Default, PartialEq)]
struct Report {
    /// Checksums of [`FACTS`].
    facts: Vec<u64>,
    /// Micro-batches of the upper and of the lower draw.
    drawn: Vec<u64>,
    /// Of `F(x, w)`, `G(x, w)` and `G(x, u)`: the loss, then the parts.
    values: [Vec<f64>; 3],
    /// Which of the parameters that train have a gradient.
    present: Vec<bool>,
}

impl Report {
    /// Lists of 64-bit words, each after its length.
    fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        let values = values.map(|values| values.iter().map(|value| value.to_bits()).collect());
        let bits = self.present.chunks(64).map(|chunk| {
            let bits = chunk.iter().enumerate();
            bits.fold(0, |word, (i, &bit)| word | u64::from(bit) << i)
        });
        let lists = [self.facts.clone(), self.drawn.clone()].into_iter();
        let lists = lists.chain(values).chain([bits.collect()]);
        let words = lists.flat_map(|list: Vec<u64>| [vec![list.len() as u64], list].concat());
        let words = words.chain([self.present.len() as u64]);
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// `None` for what no rank of this version sends.
    fn read(bytes: &[u8]) -> Option<Self> {
        let words = bytes.chunks_exact(8).map(|word| word.try_into().ok());
        let words: Vec<u64> = words
            .map(|word| word.map(u64::from_le_bytes))
            .collect::<Option<_>>()?;
        let mut rest = &*words;
        let mut list = || -> Option<Vec<u64>> {
            let (&length, after) = rest.split_first()?;
            let (list, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
            rest = after;
            Some(list.to_vec())
        };
        let (facts, drawn) = (list()?, list()?);
        let mut values = || {
            let words = list()?;
            Some(words.into_iter().map(f64::from_bits).collect())
        };
        let values = [values()?, values()?, values()?];
        let bits = list()?;
        let &[present] = rest else { return None };
        let bit = |i: u64| Some(bits.get(i as usize / 64)? >> (i % 64) & 1 == 1);
        let present = (0..present).map(bit).collect::<Option<_>>()?;
        let whole = facts.len() == FACTS.len() && drawn.len() == 2;
        whole.then_some(Self {
            facts,
            drawn,
            values,
            present,
        })
    }

    /// Losses and parts of all ranks together, and the parameters that have a gradient on any.
    fn sum(reports: &[Vec<u8>]) -> Result<Self> {
        let reports: Option<Vec<_>> = reports.iter().map(|bytes| Self::read(bytes)).collect();
        let reports = reports.ok_or_else(|| Error::Disagreement {
            what: "the version of scalebio differs".to_owned(),
        })?;
        for (index, fact) in FACTS.iter().enumerate() {
            differing(&reports, fact, |report| report.facts[index])?;
        }
        let train = "the number of parameters that train";
        differing(&reports, train, |report| report.present.len())?;
        let mut sum = Self {
            drawn: vec![0; 2],
            ..Self::default()
        };
        for report in reports {
            sum.present.resize(report.present.len(), false);
            for (sum, present) in sum.present.iter_mut().zip(report.present) {
                *sum |= present;
            }
            for (sum, drawn) in sum.drawn.iter_mut().zip(report.drawn) {
                *sum += drawn;
            }
            for (sum, values) in sum.values.iter_mut().zip(report.values) {
                // Parts are missing where a rank drew nothing.
                sum.resize(sum.len().max(values.len()), 0.0);
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        Ok(sum)
    }
}

/// An error if what should be equal is not.
fn differing<T: PartialEq>(
    reports: &[Report],
    what: &str,
    of: impl Fn(&Report) -> T,
) -> Result<()> {
    let mut others = reports.iter().enumerate().skip(1);
    match others.find(|(_, report)| of(report) != of(&reports[0])) {
        None => Ok(()),
        Some((rank, _)) => Err(Error::Disagreement {
            what: format!("{what}: rank {rank} differs from rank 0"),
        }),
    }
}

/// The gradient of a parameter that trains, in one row.
struct Flat {
    gradient: Option<Tensor<1>>,
    numbers: usize,
    dtype: DType,
    device: Device,
}

/// The gradients of the parameters that train, in the order in which the module visits them.
fn flattened<M: Module>(module: &M, gradients: GradientsParams) -> Vec<Flat> {
    struct Flatten(GradientsParams, Vec<Flat>);

    impl ModuleVisitor for Flatten {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            let value = param.val().inner();
            // The same on all ranks, whether they have a gradient or not.
            let dtype = match value.dtype() {
                DType::F64 => DType::F64,
                _ => DType::F32,
            };
            let gradient = self.0.remove::<D>(param.id);
            self.1.push(Flat {
                gradient: gradient.map(|gradient| gradient.reshape([-1]).cast(dtype)),
                numbers: value.shape().num_elements(),
                dtype,
                device: value.device(),
            });
        }
    }

    let mut flatten = Flatten(gradients, Vec::new());
    module.visit(&mut flatten);
    flatten.1
}

/// The inverse of [`flattened`], of what `rows` has for each parameter.
fn restored<M: Module>(
    module: &M,
    rows: &mut impl Iterator<Item = Option<Tensor<1>>>,
) -> GradientsParams {
    struct Restore<'a, I>(&'a mut I, GradientsParams);

    impl<I: Iterator<Item = Option<Tensor<1>>>> ModuleVisitor for Restore<'_, I> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !param.is_require_grad() {
                return;
            }
            if let Some(Some(row)) = self.0.next() {
                let gradient = row.reshape(param.val().shape());
                self.1.register::<D>(param.id, gradient);
            }
        }
    }

    let mut restore = Restore(rows, GradientsParams::new());
    module.visit(&mut restore);
    restore.1
}

/// Sums rows over ranks, many small ones or a piece of a large one at a time.
struct Buckets<'a> {
    ranks: &'a Ranks,
    bytes: u64,
    /// The pieces of the bucket that is being filled, each with its row.
    bucket: Vec<(usize, Tensor<1>)>,
    /// Numbers in it.
    filled: usize,
    /// The summed pieces of each row, and its device.
    sums: Vec<(Vec<Tensor<1>>, Option<Device>)>,
}

impl<'a> Buckets<'a> {
    fn new(ranks: &'a Ranks, rows: usize) -> Self {
        Self {
            ranks,
            bytes: 0,
            bucket: Vec::new(),
            filled: 0,
            sums: Vec::with_capacity(rows),
        }
    }

    /// Adds a row, `present` on some rank: zeros where it is not present on this one.
    fn add(&mut self, row: Flat, present: bool) -> Result<()> {
        let index = self.sums.len();
        self.sums
            .push((Vec::new(), present.then(|| row.device.clone())));
        if !present {
            return Ok(());
        }
        let (numbers, dtype) = (row.numbers, row.dtype);
        let zeros = || Tensor::zeros([numbers], (&row.device, dtype));
        let gradient = row.gradient.unwrap_or_else(zeros);
        let other_type = |(_, piece): &(usize, Tensor<1>)| piece.dtype() != dtype;
        if self.bucket.first().is_some_and(other_type) {
            self.flush()?;
        }
        let mut start = 0;
        while start < numbers {
            let end = numbers.min(start + BUCKET - self.filled);
            self.bucket
                .push((index, gradient.clone().narrow(0, start, end - start)));
            self.filled += end - start;
            start = end;
            if self.filled == BUCKET {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some((_, first)) = self.bucket.first() else {
            return Ok(());
        };
        // A model may be spread over devices.
        let (device, size) = (first.device(), first.dtype().size());
        let (rows, pieces): (Vec<_>, Vec<_>) = self.bucket.drain(..).unzip();
        let lengths: Vec<usize> = pieces.iter().map(|piece| piece.dims()[0]).collect();
        let pieces = pieces.into_iter().map(|piece| piece.to_device(&device));
        self.bytes += (take(&mut self.filled) * size) as u64;
        let sum = self.ranks.sum(Tensor::cat(pieces.collect(), 0))?;
        let mut start = 0;
        for (row, length) in rows.into_iter().zip(lengths) {
            let piece = sum.clone().narrow(0, start, length);
            self.sums[row].0.push(piece);
            start += length;
        }
        Ok(())
    }

    /// Bytes that were handed to the collective, and the sums of all rows.
    fn finish(mut self) -> Result<(u64, Vec<Option<Tensor<1>>>)> {
        self.flush()?;
        let sums = self.sums.into_iter().map(|(pieces, device)| {
            let device = device.filter(|_| !pieces.is_empty())?;
            let pieces = pieces.into_iter().map(|piece| piece.to_device(&device));
            Some(Tensor::cat(pieces.collect(), 0))
        });
        Ok((self.bytes, sums.collect()))
    }
}

/// The same in every process of one version of the program.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Of the shapes and bits of a module's parameters.
fn checksum<M: Module>(module: &M) -> u64 {
    struct Values(DefaultHasher);

    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data();
            data.shape().iter().for_each(|size| size.hash(&mut self.0));
            self.0.write(data.as_bytes());
        }
    }

    let mut values = Values(DefaultHasher::new());
    module.visit(&mut values);
    values.0.finish()
}
