//! How parameters start: matrices normal around 0, those that end a residual branch smaller by the root of their number (Radford et
//! al. 2019), biases 0. Each is a function of the seed and its own name.

use super::Model;
use crate::draw::Stream;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};

/// `deviation` is that of matrices.
pub(super) fn started(model: Model, deviation: f64, seed: u64) -> Model {
    let branches = 2 * model.blocks.len();
    model.map(&mut Start { seed, deviation, branches, path: Vec::new() })
}

struct Start {
    seed: u64,
    deviation: f64,
    branches: usize,
    path: Vec<String>,
}

/// What keeps the start that its module gave it, by a part of its name. Nothing else may: it would be drawn when it is first read, wherever the
/// device's generator stands then.
const OWN: [&str; 5] = ["threshold", "codebook", "codebook_q", "mix", "leaving"];

impl Start {
    fn deviation(&self) -> f64 {
        let ends_branch = self.path.iter().rev().nth(1).is_some_and(|name| name == "output" || name == "down")
            && !self.path.iter().any(|name| name == "gates");
        if ends_branch { self.deviation / (self.branches as f64).sqrt() } else { self.deviation }
    }

    fn stream(&self) -> Stream {
        let letters = self.path.join(".");
        let parts: Vec<u64> = std::iter::once(self.seed).chain(letters.bytes().map(u64::from)).collect();
        Stream::of(&parts)
    }
}

impl ModuleMapper for Start {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.path.iter().any(|name| OWN.contains(&name.as_str())) {
            return param;
        }
        let is_bias = self.path.last().is_some_and(|name| name == "bias");
        if D < 2 && !is_bias {
            return param;
        }
        let (stream, deviation, shape) = (self.stream(), if is_bias { 0.0 } else { self.deviation() }, param.dims());
        let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(|at| (deviation * stream.normal(at)) as f32).collect();
        param.map(|old| {
            let new = Tensor::from_data(TensorData::new(values, shape), &old.device());
            new.set_require_grad(old.is_require_grad())
        })
    }
}
