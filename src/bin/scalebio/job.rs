//! The processes of a data-parallel run, as mpirun starts them: who prints, and how all of them end.

use std::error::Error;
use std::fmt::Display;
use std::thread::sleep;
use std::time::Duration;

use scalebio::collective::Ranks;

#[cfg(feature = "mpi")]
use scalebio::collective::Mpi;

use super::console::{self, note};

/// What Open MPI, MPICH and its kin, MVAPICH and PMIx launchers tell a process.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];
const RANKS: [&str; 4] = [
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "PMIX_RANK",
];
const ON_THIS_MACHINE: [&str; 3] = [
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_LOCAL_SIZE",
];

const RANKS_ON_THIS_MACHINE: [&str; 3] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
];

/// The job that this process is one of.
pub struct Job {
    ranks: Ranks,
    #[cfg(feature = "mpi")]
    mpi: Option<Mpi>,
}

impl Job {
    /// Joins the job that this process was started in, if a launcher did that. Only rank 0 prints from now on.
    pub fn join(timeout: Duration) -> Result<Self, Box<dyn Error>> {
        let launched = number(&SIZES).or(number(&RANKS)).is_some();
        let job = Self::connected(launched, timeout)?;
        if !job.ranks.is_first() {
            console::silence();
        }
        Ok(job)
    }

    #[cfg(feature = "mpi")]
    fn connected(launched: bool, timeout: Duration) -> Result<Self, Box<dyn Error>> {
        let mpi = launched.then(|| Mpi::start(timeout)).transpose()?;
        let ranks = mpi.clone().map(Ranks::new).unwrap_or_default();
        Ok(Self { ranks, mpi })
    }

    #[cfg(not(feature = "mpi"))]
    fn connected(launched: bool, _timeout: Duration) -> Result<Self, Box<dyn Error>> {
        // PMIx says only which one this is; Slurm, how many there are.
        let processes = number(&SIZES).or_else(|| number(&["SLURM_STEP_NUM_TASKS"]));
        match processes {
            Some(processes) if launched && processes > 1 => Err(format!(
                "started as {processes} processes, each of which would do the same run; build with `--features mpi` for \
                 a data-parallel run, or start one process"
            )
            .into()),
            _ => Ok(Self {
                ranks: Ranks::default(),
            }),
        }
    }

    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Which of the ranks on this machine this is, and how many there are.
    pub fn share(&self) -> Option<(usize, usize)> {
        let count = self.on_this_machine();
        let index = number(&RANKS_ON_THIS_MACHINE).or(number(&RANKS))? % count;
        (count > 1).then_some((index as usize, count as usize))
    }

    /// How many of the ranks share this machine's memory.
    pub fn on_this_machine(&self) -> u64 {
        match self.ranks.count() {
            1 => 1,
            count => number(&ON_THIS_MACHINE).unwrap_or(count as u64).max(1),
        }
    }

    /// Leaves the job when all ranks have come so far. Each goes on alone.
    pub fn finish(&mut self) -> scalebio::Result<()> {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = self.mpi.take() {
            mpi.finish()?;
        }
        Ok(())
    }

    /// Ends the job for this outcome: after an error, all ranks, also those that do not know of it.
    pub fn end(&mut self, outcome: Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
        #[cfg(feature = "mpi")]
        if let (Err(error), Some(mpi)) = (&outcome, &self.mpi)
            && self.ranks.count() > 1
        {
            complain(error);
            mpi.abort();
        }
        outcome
    }
}

/// After a panic of this rank the others would wait for it.
#[cfg(feature = "mpi")]
impl Drop for Job {
    fn drop(&mut self) {
        if let Some(mpi) = &self.mpi
            && self.ranks.count() > 1
            && std::thread::panicking()
        {
            mpi.abort();
        }
    }
}

/// Ends a process whose command line asks for help, or for what there is not.
pub fn exit(error: &clap::Error) -> ! {
    let rank = number(&RANKS).unwrap_or(0);
    if rank > 0 && !error.use_stderr() {
        std::process::exit(0);
    }
    sleep(Duration::from_secs(3 * rank.min(3)));
    error.exit()
}

/// Prints an error: once, where all ranks have it. The others leave it to rank 0, whose end is theirs, unless that does not
/// come.
pub fn complain(error: impl Display) {
    let rank = number(&RANKS).unwrap_or(0);
    sleep(Duration::from_secs(3 * rank.min(3)));
    note(format_args!("error: {error}"));
}

/// The number in the first of these variables that is set.
fn number(names: &[&str]) -> Option<u64> {
    let value = |name| std::env::var(name).ok()?.parse().ok();
    names.iter().find_map(value)
}
