//! Clustered attention against exact attention, bidirectional: grouping included, best of several runs in turns.
//!
//! `cargo run --release -p regard-core --example clustered -- [tokens] [runs]`: N/8 centres with small noise, 8 heads of width 64, hidden
//! states of width 512.

use regard_core::mechanism::{Inputs, Mechanism, Pass, Plan};
use regard_core::{Error, Output, Par, Sight, Strided, StridedMut, View, ViewMut};
use std::time::Instant;

const HEADS: usize = 8;
const WIDTH: usize = 64;

/// Numbers from -1 to 1.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Rows near one of `kinds` centres, those of `order`.
    fn rows(&mut self, kinds: usize, order: &[usize], width: usize) -> Vec<f32> {
        let centres: Vec<f32> = (0..kinds * width).map(|_| self.next()).collect();
        order.iter().flat_map(|&kind| centres[kind * width..][..width].to_vec()).map(|x| x + 0.05 * self.next()).collect()
    }
}

fn view(data: &[f32], shape: [usize; 4]) -> Result<View<'_>, Error> {
    Strided::contiguous(data, shape, "x").map(View::from)
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>().expect("a number"));
    let (tokens, runs) = (arguments.next().unwrap_or(16_384), arguments.next().unwrap_or(5));
    let (kinds, mut draw) = (tokens.div_ceil(8), Draw(0x9e37_79b9_7f4a_7c15));
    let order: Vec<usize> = (0..tokens).map(|_| ((draw.next() + 1.0) / 2.0 * kinds as f32) as usize % kinds).collect();
    let x = draw.rows(kinds, &order, HEADS * WIDTH);
    let [q, k, v]: [Vec<f32>; 3] = std::array::from_fn(|_| (0..HEADS).flat_map(|_| draw.rows(kinds, &order, WIDTH)).collect());
    let shape = [1, HEADS, tokens, WIDTH];
    let mut o = vec![0.0; q.len()];
    let mut settings = Vec::new();
    for (name, options) in [("clustered", &[][..]), ("clustered", &[("metric", "keys")]), ("exact", &[])] {
        let mut mechanism = Mechanism::by_name(name).expect("it is listed");
        options.iter().for_each(|(option, value)| mechanism.set(option, value).expect("it is an option"));
        settings.push((format!("{name} {options:?}"), mechanism, [f64::INFINITY; 2]));
    }
    for causal in [false, true] {
        let sight = if causal { Sight::causal() } else { Sight::full() };
        for _ in 0..runs {
            for (_, mechanism, best) in &mut settings {
                let mut inputs = Inputs::new(view(&q, shape)?, view(&k, shape)?, view(&v, shape)?, sight);
                inputs.x = Some(view(&x, [1, 1, tokens, HEADS * WIDTH])?);
                let start = Instant::now();
                let choices = mechanism.choose(&inputs, Pass::default(), Par::default())?;
                let chosen = start.elapsed().as_secs_f64();
                let out = ViewMut::F32(StridedMut::contiguous(&mut o, shape, "o")?);
                mechanism.plan(&inputs, &choices, Pass::default())?.forward(&mut Output { o: out, lse: None }, Par::default())?;
                let all = start.elapsed().as_secs_f64();
                if all < best[1] {
                    *best = [chosen, all];
                }
            }
        }
        println!("{} of {tokens} tokens, {kinds} centres, seconds:", if causal { "causal" } else { "bidirectional" });
        for (name, _, best) in &mut settings {
            println!("{name:40} choosing {:.4}, all {:.4}", best[0], best[1]);
            *best = [f64::INFINITY; 2];
        }
    }
    Ok(())
}
