//! Regard's row operations, timed one by one: JSON lines, one request on stdin, one reply on stdout.
//!
//! | request | reply |
//! |---|---|
//! | `{"op":NAME,"pass":"forward"\|"backward","rows":…,"width":…,"out":…,"dtype":"f32"\|"bf16","threads":…,"repeat":…,"write":PATH}` | `{"seconds":…}`, the mean of `repeat` calls |
//! | `{"op":"copy","bytes":…,"threads":…,"repeat":…}` | `{"seconds":…}` of a copy that reads half of the bytes and writes the other half |
//!
//! Operations and what `width` and `out` mean to each are listed in `ops.rs`; `write` is optional and takes all results, f32,
//! one behind the other. Inputs are those of `values.rs`. `backward` is the backward pass alone. A request that fails is
//! answered `{"error":…}`. Only the pass itself is timed.

mod ops;
mod values;

use half::bf16;
use ops::Arrays;
use peer_protocol::{Aligned, Result, seconds_per_call};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{HashMap, hash_map::Entry};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Pass {
    Forward,
    Backward,
}

/// What is computed, on what.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
struct Row {
    op: String,
    rows: usize,
    width: usize,
    #[serde(default)]
    out: usize,
    dtype: String,
}

#[derive(Deserialize)]
struct Request {
    #[serde(flatten)]
    row: Row,
    pass: Pass,
    threads: usize,
    repeat: usize,
    write: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Copy {
    bytes: usize,
    threads: usize,
    repeat: usize,
}

enum Typed {
    F32(Arrays<f32>),
    Bf16(Arrays<bf16>),
}

#[derive(Default)]
struct Runner {
    /// One pool per thread count, made before the clock runs.
    pools: HashMap<usize, ThreadPool>,
    /// The arrays of the last row.
    last: Option<(Row, Typed)>,
    copied: Option<[Aligned<f32>; 2]>,
}

impl Runner {
    fn answer(&mut self, line: &str) -> Result<Value> {
        let value: Value = serde_json::from_str(line)?;
        let seconds =
            if value["op"] == "copy" { self.copy(&serde_json::from_value(value)?)? } else { self.run(&serde_json::from_value(value)?)? };
        Ok(json!({ "seconds": seconds }))
    }

    fn run(&mut self, request: &Request) -> Result<f64> {
        let pool = pool(&mut self.pools, request.threads)?;
        if self.last.as_ref().is_none_or(|(row, _)| *row != request.row) {
            self.last = None;
            self.last = Some((request.row.clone(), typed(&request.row)?));
        }
        let (_, arrays) = self.last.as_mut().ok_or("no row")?;
        let timed = pool.install(|| match arrays {
            Typed::F32(arrays) => timed(arrays, request).map_err(|error| error.to_string()),
            Typed::Bf16(arrays) => timed(arrays, request).map_err(|error| error.to_string()),
        });
        Ok(timed?)
    }

    fn copy(&mut self, copy: &Copy) -> Result<f64> {
        let pool = pool(&mut self.pools, copy.threads)?;
        let len = copy.bytes / 8;
        if self.copied.as_ref().is_none_or(|[from, _]| from.len() != len) {
            self.copied = None;
            let mut pair = [Aligned::zeros(len), Aligned::zeros(len)];
            pair.iter_mut().for_each(|array| array.fill(1.0));
            self.copied = Some(pair);
        }
        let [from, to] = self.copied.as_mut().ok_or("no arrays")?;
        let share = len.div_ceil(copy.threads).max(1);
        let mut piecewise = || to.par_chunks_mut(share).zip(from.par_chunks(share)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(pool.install(|| {
            let start = Instant::now();
            (0..copy.repeat).for_each(|_| piecewise());
            start.elapsed().as_secs_f64() / copy.repeat as f64
        }))
    }
}

fn typed(row: &Row) -> Result<Typed> {
    Ok(match row.dtype.as_str() {
        "f32" => Typed::F32(Arrays::new(row)?),
        "bf16" => Typed::Bf16(Arrays::new(row)?),
        other => return Err(format!("dtype {other} is neither f32 nor bf16").into()),
    })
}

fn timed<T: regard_core::Element + bytemuck::Pod>(arrays: &mut Arrays<T>, request: &Request) -> Result<f64> {
    let seconds = seconds_per_call(request.repeat, || match request.pass {
        Pass::Forward => arrays.forward(),
        Pass::Backward => arrays.backward(),
    })?;
    if let Some(path) = &request.write {
        let results = arrays.results(request.pass);
        std::fs::write(path, results.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(seconds)
}

fn pool(pools: &mut HashMap<usize, ThreadPool>, threads: usize) -> Result<&ThreadPool> {
    match pools.entry(threads.max(1)) {
        Entry::Occupied(entry) => Ok(entry.into_mut()),
        Entry::Vacant(entry) => Ok(entry.insert(ThreadPoolBuilder::new().num_threads(threads.max(1)).build()?)),
    }
}

fn main() -> Result<()> {
    let (mut runner, mut stdout) = (Runner::default(), std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let reply = runner.answer(&line?).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(stdout, "{reply}")?;
        stdout.flush()?;
    }
    Ok(())
}
