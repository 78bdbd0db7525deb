//! Memory of a training step of one attention layer, ours or Burn's own: `regard` or `burn`, then the tokens. Linux only.
//!
//! `cargo run --release -p regard --example memory -- regard 16384`

use burn::nn::attention::{MhaInput, MultiHeadAttentionConfig};
use burn::tensor::{Device, Distribution, Tensor};
use regard::{AttentionLayerConfig, Error};
use std::time::Instant;

const WIDTH: usize = 64;
const HEADS: usize = 1;

/// The most memory that this process ever held, in MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells a process its memory");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak is among it");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let who = arguments.get(1).map_or("regard", String::as_str);
    let tokens = arguments.get(2).map_or(16384, |tokens| tokens.parse().expect("the second argument is a number of tokens"));
    let device = Device::flex().autodiff();
    let x = Tensor::<3>::random([1, tokens, WIDTH], Distribution::Normal(0.0, 1.0), &device).require_grad();
    let (before, start) = (peak(), Instant::now());
    let y = match who {
        "regard" => AttentionLayerConfig::new(WIDTH, HEADS).init(&device)?.forward(x.clone())?,
        "burn" => {
            MultiHeadAttentionConfig::new(WIDTH, HEADS).with_dropout(0.0).init(&device).forward(MhaInput::self_attn(x.clone())).context
        }
        other => panic!("{other} is neither regard nor burn"),
    };
    let gradients = y.sum().backward();
    let gradient = x.grad(&gradients).expect("x is tracked").abs().sum().into_scalar::<f32>();
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{who}: {tokens} tokens, forward and backward in {seconds:.2} s, peak {:.0} MiB more than before (|dx| sums to {gradient:.1})",
        peak() - before
    );
    Ok(())
}
