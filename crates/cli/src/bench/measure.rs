//! Time and memory of a call.

use crate::memory;
use rayon::ThreadPoolBuilder;
use rayon::prelude::*;
use regard_core::{Error, Par};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long a call is repeated before it counts: an idle processor may take tens of milliseconds to be woken.
const WARM: Duration = Duration::from_millis(50);
/// A first call this long counts as a run: what is cold at its beginning is little of it.
const LONG: Duration = Duration::from_secs(2);

/// What a call took.
pub struct Timing {
    /// Seconds of each counted run, shortest first.
    seconds: Vec<f64>,
    /// The most heap that the first, uncounted run held beyond what was there before.
    pub extra_bytes: Option<usize>,
}

impl Timing {
    /// One run of so many seconds, whose memory is not known.
    pub fn once(seconds: f64) -> Self {
        Timing { seconds: vec![seconds], extra_bytes: None }
    }

    /// The middle run, or the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let middle = self.seconds.len() / 2;
        if self.seconds.len() % 2 == 1 { self.seconds[middle] } else { (self.seconds[middle - 1] + self.seconds[middle]) / 2.0 }
    }

    /// The shortest run.
    pub fn shortest(&self) -> f64 {
        self.seconds[0]
    }

    /// Counted runs.
    pub fn runs(&self) -> usize {
        self.seconds.len()
    }
}

/// Runs a call once to see its memory, for a while to warm up, then so many times against the clock, on threads of its
/// own: what earlier calls left in a thread's working memory counts anew.
pub fn measure(
    par: Par,
    runs: usize,
    evictor: Option<&Evictor>,
    mut call: impl FnMut() -> Result<(), Error> + Send,
) -> Result<Timing, Error> {
    let pool = ThreadPoolBuilder::new().num_threads(par.threads_in_use()).build().expect("so many threads ran before");
    pool.install(|| {
        let start = Instant::now();
        let (first, extra_bytes) = memory::peak_during(&mut call);
        first?;
        while start.elapsed() < WARM {
            call()?;
        }
        let mut seconds = Vec::with_capacity(runs);
        if start.elapsed() >= LONG && evictor.is_none() {
            seconds.push(start.elapsed().as_secs_f64());
        }
        for _ in seconds.len()..runs {
            if let Some(evictor) = evictor {
                evictor.evict();
            }
            let start = Instant::now();
            call()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(Timing { seconds, extra_bytes })
    })
}

/// Memory larger than the caches: reading it leaves nothing else in them.
pub struct Evictor {
    memory: Vec<u64>,
}

impl Evictor {
    /// What it takes.
    pub const BYTES: usize = 256 << 20;

    /// Takes the memory.
    pub fn new() -> Self {
        Evictor { memory: vec![1; Self::BYTES / size_of::<u64>()] }
    }

    fn evict(&self) {
        black_box(self.memory.par_iter().fold(|| 0, |sum: u64, x| sum ^ x).reduce(|| 0, |a, b| a ^ b));
    }
}
