//! HyperAttention against exact attention, everything included: hashing, sorting, drawing. Best of several runs in turns.
//!
//! `cargo run --release -p regard-core --example hyper -- [tokens] [runs] [causal] [backward]`: 8 heads of width 64 from a normal
//! distribution; `causal` and `backward` are 0 or 1. Exact attention takes its turns up to 16,384 tokens.

use regard_core::mechanism::{Gradients, Inputs, Mechanism, Pass, Plan};
use regard_core::{Error, Output, Par, Saved, Sight, Strided, StridedMut, View, ViewMut};
use std::time::Instant;

const HEADS: usize = 8;
const WIDTH: usize = 64;
const EXACT_UP_TO: usize = 16_384;

/// Sums of numbers from -1 to 1, of variance 1.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn rows(&mut self, tokens: usize) -> Vec<f32> {
        (0..HEADS * tokens * WIDTH).map(|_| self.next() + self.next() + self.next()).collect()
    }
}

fn view(data: &[f32], shape: [usize; 4]) -> Result<View<'_>, Error> {
    Strided::contiguous(data, shape, "x").map(View::from)
}

fn view_mut(data: &mut [f32], shape: [usize; 4]) -> Result<ViewMut<'_>, Error> {
    StridedMut::contiguous(data, shape, "x").map(ViewMut::F32)
}

/// Seconds of choosing, of the forward and of the backward pass.
fn run(mechanism: &Mechanism, inputs: &Inputs<'_>, backward: bool) -> Result<[f64; 3], Error> {
    let shape = inputs.q.shape();
    let count: usize = shape.iter().product();
    let (mut o, mut lse) = (vec![0.0; count], vec![0.0; count / WIDTH]);
    let start = Instant::now();
    let choices = mechanism.choose(inputs, Pass::default(), Par::default())?;
    let chosen = start.elapsed().as_secs_f64();
    let plan = mechanism.plan(inputs, &choices, Pass::default())?;
    plan.forward(&mut Output { o: view_mut(&mut o, shape)?, lse: Some(&mut lse) }, Par::default())?;
    let forward = start.elapsed().as_secs_f64() - chosen;
    if !backward {
        return Ok([chosen, forward, 0.0]);
    }
    let [mut dq, mut dk, mut dv] = [const { Vec::new() }; 3];
    [&mut dq, &mut dk, &mut dv].into_iter().for_each(|x: &mut Vec<f32>| x.resize(count, 0.0));
    let start = Instant::now();
    let heads = regard_core::Gradients {
        dq: Some(view_mut(&mut dq, shape)?),
        dk: Some(view_mut(&mut dk, shape)?),
        dv: Some(view_mut(&mut dv, shape)?),
        ..regard_core::Gradients::default()
    };
    let saved = Saved { o: view(&o, shape)?, lse: &lse, d_o: inputs.v };
    plan.backward(&saved, &mut Gradients { heads, ..Gradients::default() }, Par::default())?;
    Ok([chosen, forward, start.elapsed().as_secs_f64()])
}

fn main() -> Result<(), Error> {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|argument| argument.parse().expect("a number")).collect();
    let argument = |at: usize, default| arguments.get(at).copied().unwrap_or(default);
    let (tokens, runs, causal, backward) = (argument(0, 65_536), argument(1, 3), argument(2, 1) == 1, argument(3, 0) == 1);
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    let [q, k, v] = [draw.rows(tokens), draw.rows(tokens), draw.rows(tokens)];
    let shape = [1, HEADS, tokens, WIDTH];
    let sight = if causal { Sight::causal() } else { Sight::full() };
    let inputs = Inputs::new(view(&q, shape)?, view(&k, shape)?, view(&v, shape)?, sight);
    let names: &[&str] = if tokens <= EXACT_UP_TO { &["hyper", "exact"] } else { &["hyper"] };
    let mut best = vec![[f64::INFINITY; 3]; names.len()];
    for _ in 0..runs {
        for (name, best) in names.iter().zip(&mut best) {
            let times = run(&Mechanism::by_name(name).expect("it is listed"), &inputs, backward)?;
            best.iter_mut().zip(times).for_each(|(best, time)| *best = best.min(time));
        }
    }
    for (name, [chosen, forward, backward]) in names.iter().zip(best) {
        println!("{name} {tokens} tokens causal={causal}: chosen in {chosen:.3} s, forward {forward:.3} s, backward {backward:.3} s");
    }
    Ok(())
}
