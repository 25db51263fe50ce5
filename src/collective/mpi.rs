//! Ranks that are processes, on one machine or several, through MPI.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use super::{Collective, Numbers, check_timeout};
use crate::{Error, Result};

/// Numbers that MPI gets at a time: it counts in 32 bits.
const PIECE: usize = 1 << 26;

/// One process of an MPI job, as `mpirun` starts it: a collective over all processes of the job, through `mpi` and the MPI
/// that it was built with.
///
/// All calls of MPI are made by one thread of their own: a call that does not come back keeps its buffers, and the run gets
/// an error. Everything waits in a non-blocking all-reduce.
///
/// The clones are handles of the same.
#[derive(Clone, Debug)]
pub struct Mpi {
    calls: Sender<Call>,
    rank: usize,
    ranks: usize,
}

#[derive(Debug)]
enum Call {
    Sum(Numbers, Sender<Result<Numbers>>),
    Exchange(Vec<u8>, Sender<Result<Vec<Vec<u8>>>>),
    Finish(Sender<Result<()>>),
    Abort,
}

impl Mpi {
    /// Joins the job that this process was started in; one that `mpirun` did not start is a job of one rank. Once a process.
    /// A rank waits for the others up to `timeout`, which must cover the slowest step and the writing of a checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for no time, and where MPI was started before.
    pub fn start(timeout: Duration) -> Result<Self> {
        check_timeout(timeout)?;
        let (calls, received) = channel();
        let (ready, started) = channel();
        let serve = move || {
            let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
                return; // `ready` is dropped
            };
            let world = universe.world();
            let (rank, ranks) = (world.rank() as usize, world.size() as usize);
            let _ = ready.send((rank, ranks));
            let server = Server {
                world,
                calls: received,
                rank,
                ranks,
                timeout,
            };
            server.serve(universe);
        };
        let spawned = thread::Builder::new().name("mpi".to_owned()).spawn(serve);
        let joined = spawned.ok().and_then(|_| started.recv().ok());
        let (rank, ranks) = joined.ok_or_else(|| {
            let remedy = "clone the one there is";
            Error::setting("Mpi", "started twice", "started once a process", remedy)
        })?;
        Ok(Self { calls, rank, ranks })
    }

    /// Leaves the job, when all ranks do: MPI is finalized after all have called this. To be called at the end of a run that
    /// went well; a rank that ends without it ends the job.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if another rank does not.
    pub fn finish(&self) -> Result<()> {
        self.call(Call::Finish)
    }

    /// Ends all ranks of the job at once, and this process with them. For a rank that cannot go on, after it has said why.
    pub fn abort(&self) -> ! {
        if self.calls.send(Call::Abort).is_ok() {
            thread::sleep(Duration::from_secs(10)); // MPI ends this process
        }
        std::process::exit(1)
    }

    fn call<T>(&self, call: impl FnOnce(Sender<Result<T>>) -> Call) -> Result<T> {
        let (reply, answer) = channel();
        let sent = self.calls.send(call(reply));
        let answer = sent.ok().and_then(|()| answer.recv().ok());
        answer.unwrap_or_else(|| {
            let remedy = "end the run after the first error";
            Err(Error::setting(
                "Mpi",
                "used after its end",
                "a job that goes on",
                remedy,
            ))
        })
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn sum(&mut self, tensor: Tensor<1>) -> Result<Tensor<1>> {
        let device = tensor.device();
        let numbers = Numbers::of(tensor)?;
        let sum = self.call(|reply| Call::Sum(numbers, reply))?;
        Ok(sum.into_tensor(&device))
    }

    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.call(|reply| Call::Exchange(bytes.to_vec(), reply))
    }
}

/// What makes the calls.
struct Server {
    world: SimpleCommunicator,
    calls: Receiver<Call>,
    rank: usize,
    ranks: usize,
    timeout: Duration,
}

impl Server {
    fn serve(self, universe: Universe) {
        while let Ok(call) = self.calls.recv() {
            // An answer that nobody waits for any more is no loss.
            match call {
                Call::Sum(Numbers::F32(own), reply) => {
                    let sum = self.sum(&own, &reply);
                    let _ = reply.send(Ok(Numbers::F32(sum)));
                }
                Call::Sum(Numbers::F64(own), reply) => {
                    let sum = self.sum(&own, &reply);
                    let _ = reply.send(Ok(Numbers::F64(sum)));
                }
                Call::Exchange(own, reply) => {
                    let _ = reply.send(Ok(self.exchange(&own, &reply)));
                }
                Call::Finish(reply) => {
                    // Only when all are here: MPI_Finalize would wait for one that has ended without an end.
                    self.sum(&[1_u64], &reply);
                    drop(universe);
                    let _ = reply.send(Ok(()));
                    return;
                }
                Call::Abort => self.world.abort(1),
            }
        }
        // All handles are gone without `finish`: another rank may be gone too, and MPI_Finalize would wait for it.
        std::mem::forget(universe);
    }

    fn exchange<R>(&self, own: &[u8], reply: &Sender<Result<R>>) -> Vec<Vec<u8>> {
        // A sum in which every rank has a place of its own, so that all waiting is one operation.
        let mut lengths = vec![0_u64; self.ranks];
        lengths[self.rank] = own.len() as u64;
        let lengths = self.sum(&lengths, reply);
        let before: u64 = lengths[..self.rank].iter().sum();
        let mut bytes = vec![0_u8; lengths.iter().sum::<u64>() as usize];
        bytes[before as usize..][..own.len()].copy_from_slice(own);
        let bytes = self.sum(&bytes, reply);
        let mut rest = &*bytes;
        let of_rank = |length: &u64| {
            let (own, others) = rest.split_at(*length as usize);
            rest = others;
            own.to_vec()
        };
        lengths.iter().map(of_rank).collect()
    }

    fn sum<T: Equivalence + Clone + Default, R>(
        &self,
        own: &[T],
        reply: &Sender<Result<R>>,
    ) -> Vec<T> {
        let mut sum = vec![T::default(); own.len()];
        for (own, sum) in own.chunks(PIECE).zip(sum.chunks_mut(PIECE)) {
            scope(|scope| {
                let add = SystemOperation::sum();
                let request = self.world.immediate_all_reduce_into(scope, own, sum, add);
                self.wait(request, reply);
            });
        }
        sum
    }

    /// Waits for the other ranks: awake at first, since they are mostly near, then with short sleeps, since they may share
    /// the cores.
    fn wait<'a, D: ?Sized, S: Scope<'a>, R>(
        &self,
        request: Request<'a, D, S>,
        reply: &Sender<Result<R>>,
    ) {
        const AWAKE: Duration = Duration::from_micros(200);
        const SLEEP: Duration = Duration::from_micros(100);
        let started = Instant::now();
        let mut request = request;
        while let Err(unfinished) = request.test() {
            request = unfinished;
            let waited = started.elapsed();
            if waited > self.timeout {
                let _ = reply.send(Err(Error::Timeout {
                    rank: self.rank,
                    ranks: self.ranks,
                    seconds: waited.as_secs_f64(),
                }));
                self.stay();
            }
            if waited < AWAKE {
                thread::yield_now();
            } else {
                thread::sleep(SLEEP);
            }
        }
    }

    /// What is left to do when others are gone: MPI still has the buffers of this thread, so it must not go on.
    fn stay(&self) -> ! {
        loop {
            match self.calls.recv() {
                Ok(Call::Abort) => self.world.abort(1),
                Ok(_) => {} // without an answer, which is an error for who waits
                Err(_) => thread::park(),
            }
        }
    }
}
