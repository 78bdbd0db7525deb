//! Attention over quantised keys (`vq`), and over quantised queries and keys (`vq_qk`): causal, assignment included, best of several runs.
//!
//! `cargo run --release -p regard-core --example vq -- [tokens] [runs] [backward]`: 8 heads of width 64, f32, `block` and `recent` 128. Any third word
//! adds the backward pass, whose memory is that of its outputs and of what it reports.

use regard_core::mechanism::{Gradients, Inputs, Mechanism, Pass, Plan};
use regard_core::{Error, Output, Par, Saved, Sight, Strided, StridedMut, View, ViewMut};
use std::time::Instant;

const HEADS: usize = 8;
const WIDTH: usize = 64;

/// Sums of four numbers from -1 to 1, near enough to normal.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let sum: u64 = (0..4).map(|i| self.0 >> (16 * i) & 0xffff).sum();
        sum as f32 / 32_768.0 - 4.0
    }

    fn tensor(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn view(data: &[f32], shape: [usize; 4]) -> Result<View<'_>, Error> {
    Strided::contiguous(data, shape, "x").map(View::from)
}

fn view_mut(data: &mut [f32], shape: [usize; 4]) -> Result<ViewMut<'_>, Error> {
    StridedMut::contiguous(data, shape, "x").map(ViewMut::F32)
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(default, |argument| argument.parse().expect("a number"));
    let (tokens, runs, backward) = (number(0, 65_536), number(1, 5), arguments.len() > 2);
    let (shape, mut draw) = ([1, HEADS, tokens, WIDTH], Draw(0x9e37_79b9_7f4a_7c15));
    let [q, k, v, d_o] = [(); 4].map(|()| draw.tensor(HEADS * tokens * WIDTH));
    let mut o = vec![0.0; q.len()];
    let mut lse = vec![0.0; HEADS * tokens];
    let mut gradients = [(); 3].map(|()| if backward { vec![0.0; q.len()] } else { Vec::new() });
    for (name, codes, options) in [("vq", 512, &["block", "recent"][..]), ("vq_qk", 128, &["block"])] {
        let mut mechanism = Mechanism::by_name(name).expect("it is listed");
        options.iter().for_each(|option| mechanism.set(option, "128").expect("it is an option"));
        let [codebook, codebook_q] = [(); 2].map(|()| draw.tensor(HEADS * codes * WIDTH));
        let mut inputs = Inputs::new(view(&q, shape)?, view(&k, shape)?, view(&v, shape)?, Sight::causal());
        inputs.codebook = Some(view(&codebook, [1, HEADS, codes, WIDTH])?);
        inputs.codebook_q = (name == "vq_qk").then(|| view(&codebook_q, [1, HEADS, codes, WIDTH])).transpose()?;
        let mut best = [f64::INFINITY; 3];
        for _ in 0..runs {
            let start = Instant::now();
            let choices = mechanism.choose(&inputs, Pass::default(), Par::default())?;
            best[0] = best[0].min(start.elapsed().as_secs_f64());
            let plan = mechanism.plan(&inputs, &choices, Pass::default())?;
            plan.forward(&mut Output { o: view_mut(&mut o, shape)?, lse: Some(&mut lse) }, Par::default())?;
            best[1] = best[1].min(start.elapsed().as_secs_f64());
            if backward {
                let [dq, dk, dv] = &mut gradients;
                let [dq, dk, dv] = [view_mut(dq, shape)?, view_mut(dk, shape)?, view_mut(dv, shape)?].map(Some);
                let mut into = Gradients::from(regard_core::Gradients { dq, dk, dv, ..regard_core::Gradients::default() });
                let start = Instant::now();
                plan.backward(&Saved { o: view(&o, shape)?, lse: &lse, d_o: view(&d_o, shape)? }, &mut into, Par::default())?;
                best[2] = best[2].min(start.elapsed().as_secs_f64());
            }
        }
        let backward = if backward { format!(", backward {:.3} s", best[2]) } else { String::new() };
        println!("{name} of {tokens} tokens, {codes} codes: assignment {:.3} s, forward with it {:.3} s{backward}", best[0], best[1]);
    }
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<usize>().ok());
        let ours = (q.len() * if backward { 8 } else { 5 }) * size_of::<f32>();
        peak.iter().for_each(|peak| println!("peak beside inputs and outputs: {} MiB", (peak * 1024).saturating_sub(ours) >> 20));
    }
    Ok(())
}
