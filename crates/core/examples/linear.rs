//! Linear and gated linear attention, causal, forward and backward, seconds and GFLOP/s; best of several runs in turns.
//!
//! `cargo run --release -p regard-core --example linear -- [tokens] [runs] [chunk]`: 8 heads of width 64, f32. With `steps` as a fourth
//! argument, a decode of so many tokens instead, and the bytes that are held meanwhile.

use regard_core::mechanism::{Gradients, Inputs, Mechanism, Memory, Pass, Plan, Token, Tokens};
use regard_core::{Error, Output, Par, Saved, Sight, Strided, StridedMut, View, ViewMut};
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

    fn rows(&mut self, tokens: usize) -> Vec<f32> {
        (0..HEADS * tokens * WIDTH).map(|_| self.next()).collect()
    }
}

fn view(data: &[f32], tokens: usize) -> Result<View<'_>, Error> {
    Strided::contiguous(data, [1, HEADS, tokens, WIDTH], "x").map(View::from)
}

fn fresh(data: &mut Vec<f32>, tokens: usize) -> Result<ViewMut<'_>, Error> {
    let strides = [HEADS * tokens * WIDTH, tokens * WIDTH, WIDTH, 1];
    StridedMut::fresh(data, [1, HEADS, tokens, WIDTH], strides, "x").map(ViewMut::F32)
}

/// Rows of every tensor of a call.
struct Call {
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    gates: Vec<f32>,
}

impl Call {
    fn new(tokens: usize) -> Self {
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        let [q, k, v] = [(); 3].map(|()| draw.rows(tokens));
        let gates = draw.rows(tokens).into_iter().map(|x| -0.1 * (1.0 + x)).collect();
        Call { tokens, q, k, v, gates }
    }

    fn inputs(&self, gated: bool) -> Result<Inputs<'_>, Error> {
        let [q, k, v, gates] = [&self.q, &self.k, &self.v, &self.gates].map(|rows| view(rows, self.tokens));
        Ok(Inputs { gates: if gated { Some(gates?) } else { None }, ..Inputs::new(q?, k?, v?, Sight::causal()) })
    }

    /// Seconds of choosing and forward, and of backward.
    fn run(&self, mechanism: &Mechanism) -> Result<[f64; 2], Error> {
        let gated = !mechanism.about().needs[0].is_empty();
        let (inputs, mut o, mut d) = (self.inputs(gated)?, Vec::new(), [(); 4].map(|()| Vec::new()));
        let start = Instant::now();
        let choices = mechanism.choose(&inputs, Pass::default(), Par::default())?;
        let plan = mechanism.plan(&inputs, &choices, Pass::default())?;
        plan.forward(&mut Output { o: fresh(&mut o, self.tokens)?, lse: None }, Par::default())?;
        let forward = start.elapsed().as_secs_f64();
        let lse = vec![0.0; HEADS * self.tokens];
        let [dq, dk, dv, dgates] = &mut d;
        let heads = regard_core::Gradients {
            dq: Some(fresh(dq, self.tokens)?),
            dk: Some(fresh(dk, self.tokens)?),
            dv: Some(fresh(dv, self.tokens)?),
            ..regard_core::Gradients::default()
        };
        let mut gradients = Gradients { dgates: if gated { Some(fresh(dgates, self.tokens)?) } else { None }, ..heads.into() };
        let start = Instant::now();
        let saved = Saved { o: view(&o, self.tokens)?, lse: &lse, d_o: view(&self.v, self.tokens)? };
        plan.backward(&saved, &mut gradients, Par::default())?;
        Ok([forward, start.elapsed().as_secs_f64()])
    }

    /// Seconds of a step, and bytes held after the first and the last.
    fn steps(&self, mechanism: &Mechanism, steps: usize) -> Result<(f64, [usize; 2]), Error> {
        let (gated, mut state, mut o) = (!mechanism.about().needs[0].is_empty(), mechanism.start()?, vec![0.0; HEADS * WIDTH]);
        let (start, mut bytes) = (Instant::now(), [0; 2]);
        for step in 0..steps {
            let t = step % self.tokens;
            let row = |rows| view(rows, self.tokens)?.part([0, 0, t, 0], [1, HEADS, 1, WIDTH]);
            let mut kept = Tokens::new(row(&self.k)?, row(&self.v)?);
            kept.gates = if gated { Some(row(&self.gates)?) } else { None };
            let token = Token { q: row(&self.q)?, kept, bias: None, mask: None };
            let out = ViewMut::F32(StridedMut::contiguous(&mut o, [1, HEADS, 1, WIDTH], "o")?);
            state.step(&token, &mut Output { o: out, lse: None }, Par::default())?;
            bytes[usize::from(step > 0)] = state.bytes();
        }
        Ok((start.elapsed().as_secs_f64() / steps as f64, bytes))
    }
}

fn main() -> Result<(), Error> {
    let arguments: Vec<usize> = std::env::args().skip(1).map(|argument| argument.parse().expect("a number")).collect();
    let argument = |at: usize, default| arguments.get(at).copied().unwrap_or(default);
    let (tokens, runs, chunk) = (argument(0, 65_536), argument(1, 5), argument(2, 64));
    let call = Call::new(tokens);
    let mut mechanisms = ["linear", "gated_linear"].map(|name| Mechanism::by_name(name).expect("it is listed"));
    mechanisms.iter_mut().for_each(|mechanism| mechanism.set("chunk", &chunk.to_string()).expect("it is an option"));
    if let Some(&steps) = arguments.get(3) {
        for mechanism in &mechanisms {
            let (seconds, bytes) = call.steps(mechanism, steps)?;
            println!("{:12} {steps} steps, {:.2} us each, {bytes:?} bytes", mechanism.about().name, 1e6 * seconds);
        }
        return Ok(());
    }
    let mut best = [[f64::INFINITY; 2]; 2];
    for _ in 0..runs {
        for (mechanism, best) in mechanisms.iter().zip(&mut best) {
            let seconds = call.run(mechanism)?;
            (0..2).for_each(|pass| best[pass] = best[pass].min(seconds[pass]));
        }
    }
    println!("{tokens} tokens, {HEADS} heads of width {WIDTH}, chunk {chunk}, seconds:");
    for (mechanism, [forward, backward]) in mechanisms.iter().zip(best) {
        println!("{:12} forward {forward:.4}, backward {backward:.4}", mechanism.about().name);
    }
    Ok(())
}
