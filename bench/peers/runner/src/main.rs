//! Regard, speaking the measuring protocol on stdin and stdout.

mod engine;

use std::collections::{HashMap, hash_map::Entry};

use peer_protocol::{Call, Ceilings, Engine, Inputs, Pass, Result, Tensor, seconds_per_call, serve};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::engine::Buffers;

fn main() -> Result<()> {
    serve(Regard::default())
}

/// One pool per thread count, so that counts can alternate without building threads while the clock runs.
#[derive(Default)]
struct Regard {
    pools: HashMap<usize, ThreadPool>,
    loaded: Option<Loaded>,
}

struct Loaded {
    inputs: Inputs,
    buffers: Buffers,
    last: Pass,
}

impl Engine for Regard {
    fn hello(&self) -> (&'static str, Option<String>) {
        ("regard", engine::level())
    }

    fn load(&mut self, inputs: Inputs) -> Result<()> {
        let buffers = Buffers::for_inputs(&inputs);
        self.loaded = Some(Loaded { inputs, buffers, last: Pass::Forward });
        Ok(())
    }

    fn run(&mut self, pass: Pass, call: &Call) -> Result<f64> {
        let pool = pool(&mut self.pools, call.threads)?;
        let loaded = self.loaded.as_mut().ok_or("nothing is loaded")?;
        pool.install(|| loaded.run(pass, call).map_err(|error| error.to_string())).map_err(Into::into)
    }

    fn outputs(&self) -> Result<Vec<(&'static str, &Tensor)>> {
        let Loaded { buffers, last, .. } = self.loaded.as_ref().ok_or("nothing is loaded")?;
        let mut outputs = vec![("o", &buffers.o)];
        if *last == Pass::Backward {
            outputs.extend([("dq", &buffers.dq), ("dk", &buffers.dk), ("dv", &buffers.dv)]);
        }
        Ok(outputs)
    }

    fn ceilings(&mut self, threads: usize) -> Result<Ceilings> {
        Ok(pool(&mut self.pools, threads)?.install(|| engine::ceilings(threads)))
    }
}

impl Loaded {
    fn run(&mut self, pass: Pass, call: &Call) -> Result<f64> {
        self.last = pass;
        let Self { inputs, buffers, .. } = self;
        seconds_per_call(call.repeat, || match pass {
            Pass::Forward | Pass::Decode => engine::forward(inputs, call, buffers),
            Pass::Backward => engine::forward_backward(inputs, call, buffers),
        })
    }
}

fn pool(pools: &mut HashMap<usize, ThreadPool>, threads: usize) -> Result<&ThreadPool> {
    match pools.entry(threads) {
        Entry::Occupied(entry) => Ok(entry.into_mut()),
        Entry::Vacant(entry) => Ok(entry.insert(ThreadPoolBuilder::new().num_threads(threads).build()?)),
    }
}
