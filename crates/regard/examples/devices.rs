//! Attention on a device, ours and Burn's own: causal, 8 heads of 64, one sequence. A line of JSON per length, pass and operation, with
//! the largest difference from the fused kernels of the CPU.
//!
//! `cargo run --release -p regard --features wgpu --example devices -- wgpu f32`; the device is `cpu` (the default) or one that a feature
//! brings (`wgpu`, `vulkan`, `cuda`), the type `f32` (the default), `bf16` or `f16`.

use burn::tensor::module::attention as burn_attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, Distribution, Tensor};
use regard::{Attention, Error, attention};
use std::time::Instant;

const HEADS: usize = 8;
const WIDTH: usize = 64;
const LENGTHS: [usize; 3] = [1024, 4096, 16384];
/// The longest sequence whose scores, all stored at once, fit one buffer of a GPU.
const LONGEST_STORED: usize = 4096;
/// Calls that are timed, after two that are not.
const RUNS: usize = 7;
const WINDOW: usize = 256;

fn device(name: &str) -> Device {
    match name {
        "cpu" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(Default::default()),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::vulkan(Default::default()),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        other => panic!("no device {other}: cpu, or wgpu, vulkan or cuda with the feature of that name"),
    }
}

fn dtype(name: &str) -> DType {
    match name {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        other => panic!("{other} is not f32, bf16 or f16"),
    }
}

/// What is timed.
#[derive(Clone, Copy)]
enum Operation {
    Exact,
    Local,
    Burn,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Exact => "regard exact",
            Operation::Local => "regard window of 256",
            Operation::Burn => "burn exact",
        }
    }

    fn run(self, [q, k, v]: [Tensor<4>; 3]) -> Result<Tensor<4>, Error> {
        match self {
            Operation::Exact => attention(q, k, v, &Attention::causal()),
            Operation::Local => attention(q, k, v, &Attention::causal().window(WINDOW)),
            Operation::Burn => Ok(burn_attention(q, k, v, None, None, AttentionModuleOptions { is_causal: true, ..Default::default() })),
        }
    }

    /// What the kernels of the CPU give.
    fn expected(self, qkv: &[Tensor<4>; 3]) -> Result<Tensor<4>, Error> {
        let here = qkv.clone().map(|x| x.to_device(&Device::flex()));
        if let Operation::Burn = self { Operation::Exact.run(here) } else { self.run(here) }
    }
}

/// Inputs `[1, 8, N, 64]`, tracked where the device is.
fn draw(tokens: usize, dtype: DType, device: &Device) -> [Tensor<4>; 3] {
    let normal = Distribution::Normal(0.0, 1.0);
    [(); 3].map(|()| Tensor::<4>::random([1, HEADS, tokens, WIDTH], normal, &Device::flex()).cast(dtype).to_device(device))
}

/// Median seconds of a call that ends when the device has done its work.
fn time(device: &Device, mut call: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut seconds = Vec::with_capacity(RUNS);
    for _ in 0..RUNS + 2 {
        let start = Instant::now();
        call()?;
        device.sync().expect("the device finishes");
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.drain(..2);
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[RUNS / 2])
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |at: usize, or: &'static str| arguments.get(at).map_or(or, String::as_str).to_owned();
    let (name, kind) = (argument(1, "cpu"), argument(2, "f32"));
    let (device, dtype) = (device(&name), dtype(&kind));
    let all = LENGTHS.iter().flat_map(|n| [Operation::Exact, Operation::Local, Operation::Burn].map(|o| (*n, o)));
    for (tokens, operation) in all.filter(|(n, operation)| *n <= LONGEST_STORED || !matches!(operation, Operation::Burn)) {
        let qkv = draw(tokens, dtype, &device);
        let found = operation.run(qkv.clone())?.cast(DType::F32).to_device(&Device::flex());
        let apart = (found - operation.expected(&qkv)?.cast(DType::F32)).abs().max().into_scalar::<f32>();
        let forward = time(&device, || operation.run(qkv.clone()).map(drop))?;
        let tracked = qkv.map(|x| x.autodiff().require_grad());
        let both = time(&device, || operation.run(tracked.clone()).map(|o| drop(o.sum().backward())))?;
        let what = operation.name();
        println!(
            "{{\"device\":\"{name}\",\"dtype\":\"{kind}\",\"tokens\":{tokens},\"what\":\"{what}\",\"forward_ms\":{:.3},\
             \"forward_backward_ms\":{:.3},\"apart\":{apart:e}}}",
            forward * 1e3,
            both * 1e3
        );
    }
    Ok(())
}
