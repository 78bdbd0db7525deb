//! AdamW with decoupled decay of matrices alone (Loshchilov, Hutter 2019), and the length of a gradient.

use super::Training;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamW, AdamWConfig, GradientsParams, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};

/// Burn's AdamW twice: with decay for matrices, without it for biases and norms.
#[derive(Clone)]
struct ByRank {
    matrices: AdamW,
    vectors: AdamW,
}

/// The optimiser of a run.
pub(super) fn optimizer(training: &Training) -> ModuleOptimizer {
    let adam = AdamWConfig::new().with_beta_1(training.beta_1).with_beta_2(training.beta_2).with_epsilon(training.epsilon);
    ByRank { matrices: adam.clone().with_weight_decay(training.weight_decay).build(), vectors: adam.with_weight_decay(0.0).build() }.into()
}

impl Optimizer for ByRank {
    type State<const D: usize> = <AdamW as Optimizer>::State<D>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        x: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let adam = if D > 1 { &self.matrices } else { &self.vectors };
        adam.step(rate, x, gradient, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        AdamW::to_device(state, device)
    }
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
            self.squares += f64::from(gradient.square().sum().into_scalar::<f32>());
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
