//! AdamW with decoupled decay of matrices alone (Loshchilov, Hutter 2019), and the length of a gradient.

use super::Training;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use regard::optim::{AdamW, squared_length};

/// The optimiser of a run.
pub(super) fn optimizer(training: &Training) -> ModuleOptimizer {
    let &Training { beta_1, beta_2, epsilon, weight_decay, .. } = training;
    AdamW { betas: [beta_1, beta_2], epsilon, decay: weight_decay, vector_decay: 0.0 }.init()
}

/// Shortens the gradient of all parameters together to `longest`; returns the length it had.
pub(super) fn clip<M: Module>(gradients: GradientsParams, model: &M, longest: Option<f32>) -> (GradientsParams, Option<f32>) {
    let Some(longest) = longest else { return (gradients, None) };
    let mut length = Length { gradients: &gradients, squares: 0.0 };
    model.visit(&mut length);
    let length = length.squares.sqrt() as f32;
    if length <= longest {
        return (gradients, Some(length));
    }
    let mut scale = Scale { gradients, by: longest / length };
    model.visit(&mut scale);
    (scale.gradients, Some(length))
}

struct Length<'a> {
    gradients: &'a GradientsParams,
    squares: f64,
}

impl ModuleVisitor for Length<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.squares += squared_length(gradient);
        }
    }
}

struct Scale {
    gradients: GradientsParams,
    by: f32,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, gradient * self.by);
        }
    }
}
