//! AdamW as one pass over the parameters, for Burn's module optimiser.
//!
//! Burn's own is a dozen tensor operations, each of which reads and writes everything once. On the CPU device in f32 this one reads parameter,
//! gradient and moments once and writes three results; elsewhere it is Burn's. The state is Burn's own, so its records load.
//! Loshchilov, Hutter 2019, arXiv 1711.05101.

use crate::autodiff::{flex_float, from_flex};
use crate::flex::{self, Rows};
use crate::{Error, door};
use burn::optim::{self, AdamWConfig, AdamWState, AdaptiveMomentumState, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{DType, Device, Tensor};
use regard_core::Par;
use regard_core::rows::{AdamW as Kernel, sum_of_squares};

/// AdamW with decay of matrices alone, or of everything.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::optim::{GradientsParams, ModuleOptimizer};
/// use burn::tensor::{Device, Tensor};
/// use regard::optim::AdamW;
///
/// let device = Device::flex().autodiff();
/// let linear = LinearConfig::new(4, 2).init(&device);
/// let mut optimizer: ModuleOptimizer = AdamW { decay: 0.1, ..AdamW::default() }.init();
/// let loss = linear.forward(Tensor::<2>::ones([3, 4], &device)).powi_scalar(2).mean();
/// let gradients = GradientsParams::from_grads(loss.backward(), &linear);
/// let linear = optimizer.step(1e-3, linear, gradients);
/// # let _ = linear;
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// β₁, β₂.
    pub betas: [f32; 2],
    /// ε.
    pub epsilon: f32,
    /// Decay of matrices, which the rate scales.
    pub decay: f32,
    /// Decay of vectors: biases and norms.
    pub vector_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { betas: [0.9, 0.999], epsilon: 1e-8, decay: 0.01, vector_decay: 0.0 }
    }
}

impl AdamW {
    /// For a whole module.
    pub fn init(self) -> ModuleOptimizer {
        self.into()
    }

    fn decay(&self, dimensions: usize) -> f32 {
        if dimensions > 1 { self.decay } else { self.vector_decay }
    }

    fn burn(&self, dimensions: usize) -> optim::AdamW {
        let [first, second] = self.betas;
        let config = AdamWConfig::new().with_beta_1(first).with_beta_2(second).with_epsilon(self.epsilon);
        config.with_weight_decay(self.decay(dimensions)).build()
    }

    fn fused<const D: usize>(
        &self,
        rate: LearningRate,
        [x, g]: [Tensor<D>; 2],
        state: Option<AdaptiveMomentumState<D>>,
    ) -> Result<(Tensor<D>, AdaptiveMomentumState<D>), Error> {
        let zeros = || x.zeros_like();
        let (time, m, v) = state.map_or_else(|| (0, zeros(), zeros()), |state| (state.time, state.moment_1, state.moment_2));
        let step = Kernel {
            rate: rate as f32,
            betas: self.betas,
            epsilon: self.epsilon,
            decay: self.decay(D),
            time: u32::try_from(time + 1).unwrap_or(u32::MAX),
        };
        let from = [x, g, m, v].map(|x| flex::as_rows(&flex_float(x)));
        let [mut x, mut m, mut v] = [0; 3].map(|_| Rows::<f32>::like(&from[0]));
        let names = ["x", "gradient", "moment_1", "moment_2"];
        let mut read = from.iter().zip(names).map(|(x, name)| flex::matrix::<f32>(x, name));
        let mut next = || read.next().expect("there are four");
        let from = [next()?, next()?, next()?, next()?];
        step.step(from.each_ref(), [&mut x.matrix("x")?, &mut m.matrix("moment_1")?, &mut v.matrix("moment_2")?], Par::default())?;
        let [x, m, v] = [x, m, v].map(|rows| from_flex(rows.into_tensor()));
        Ok((x, AdaptiveMomentumState::new(time + 1, m, v)))
    }
}

/// `Σ x²`, the square of a gradient's length: one pass on the CPU.
pub fn squared_length<const D: usize>(x: Tensor<D>) -> f64 {
    if D == 0 || x.dtype() != DType::F32 || !door::has_kernels(&x) {
        return f64::from(x.square().sum().into_scalar::<f32>());
    }
    let rows = flex::as_rows(&flex_float(x));
    flex::matrix::<f32>(&rows, "x").and_then(|x| Ok(sum_of_squares(&x, Par::default())?)).expect("rows have neighbours")
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        x: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let fits = x.dtype() == DType::F32 && gradient.dtype() == DType::F32 && x.dims() == gradient.dims() && door::has_kernels(&x);
        if !fits || D == 0 {
            return self.burn(D).step(rate, x, gradient, state);
        }
        let (x, state) = self.fused(rate, [x, gradient], state.map(|state| state.momentum)).expect("shapes were compared");
        (x, Some(AdamWState::new(state)))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        <optim::AdamW as Optimizer>::to_device(state, device)
    }
}
