//! Row operations against their definitions: every operation, storage type, level and width, on one to three threads.
//!
//! A definition is written once over [`Real`]: in f64 it is the truth, in f32 the honest plain implementation whose error is the
//! budget; over 16 bits it holds what stands between two steps in 16 bits, too. What a backward pass reads (an output, an lse) is an input of its definition, rounded as the kernel reads it; that
//! the definitions of backward are the gradients of those of forward is checked by finite differences.

mod common;
mod definitions;

use common::{Random, levels};
use definitions::{Array, Define, Real};
use regard_core::rows::linear::WeightGradient;
use regard_core::rows::{
    Activation, Labels, Linear, Matrix, MatrixMut, Norm, Pairing, Rotary, Turns, activation, cross_entropy, embedding, linear, norm,
    softmax, swiglu,
};
use regard_core::{Element, Error, Par, Strided, StridedMut, bf16, f16};

const WIDTHS: [usize; 7] = [1, 7, 16, 33, 128, 384, 1000];
const ROWS: [usize; 4] = [0, 1, 2, 65];

/// A kernel with the shapes of its inputs and outputs.
trait Kernel: Define {
    /// Rows and columns of every input.
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]>;
    /// Rows and columns of every output.
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]>;
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], out: &mut [Vec<T>], par: Par) -> Result<(), Error>;
}

/// Inputs of one case, in the storage type.
fn draw<T: Element>(kernel: &impl Kernel, shape: [usize; 2], seed: u64) -> Vec<Vec<T>> {
    let mut random = Random::new(seed);
    let mut value = |index: usize| {
        let x = random.normal() * if random.chance(0.01) { 8.0 } else { 1.0 };
        T::from_f32(kernel.input(index, f64::from(x)) as f32)
    };
    kernel.inputs(shape).iter().enumerate().map(|(index, [r, c])| (0..r * c).map(|_| value(index)).collect()).collect()
}

fn arrays<T: Element, R: Real>(inputs: &[Vec<T>], shapes: &[[usize; 2]]) -> Vec<Array<R>> {
    let array = |(x, shape): (&Vec<T>, &[usize; 2])| Array::new(*shape, x.iter().map(|x| R::of(x.to_f32().into())).collect());
    inputs.iter().zip(shapes).map(array).collect()
}

fn run<T: Element>(kernel: &impl Kernel, shape: [usize; 2], inputs: &[Vec<T>], par: Par) -> Vec<Vec<T>> {
    let mut out: Vec<Vec<T>> = kernel.outputs(shape).iter().map(|[r, c]| vec![T::from_f32(f32::NAN); r * c]).collect();
    kernel.run(shape, inputs, &mut out, par).unwrap_or_else(|error| panic!("{}: {error}", kernel.name()));
    out
}

/// Largest error of the plain implementation and largest summand, per output.
fn budgets<T: Element>(kernel: &impl Kernel, shape: [usize; 2], seed: u64) -> Vec<[f64; 2]> {
    let inputs = draw::<T>(kernel, shape, seed);
    let shapes = kernel.inputs(shape);
    let truth = kernel.define::<f64>(&arrays(&inputs, &shapes));
    let plain = kernel.plain::<T>(&arrays(&inputs, &shapes));
    let budget = |(truth, plain): (&Array<f64>, &Array<f32>)| {
        let error = |(x, y): (&f64, &f32)| (x - f64::from(T::from_f32(*y).to_f32())).abs();
        let finite = |x: f64| if x.is_finite() { x } else { 0.0 };
        let worst = truth.values.iter().zip(&plain.values).map(error).map(finite).fold(0.0, f64::max);
        [worst, truth.term]
    };
    truth.iter().zip(&plain).map(budget).collect()
}

/// Every level, and products of bf16 in pairs, which plain Rust takes where no instruction does.
fn ways<T: Element>() -> Vec<(String, Par)> {
    let pairs = T::PAIRS.then(|| ("in pairs".into(), Par::serial().in_pairs()));
    levels().map(|level| (format!("at {level}"), Par::serial().level(level))).chain(pairs).collect()
}

fn check<T: Element>(kernel: &impl Kernel, shape: [usize; 2], seed: u64) -> f64 {
    let mut budgets: Vec<[f64; 2]> = vec![[0.0; 2]; kernel.outputs(shape).len()];
    // Where there are few numbers, those of other seeds count, too.
    for sibling in 0..if shape[0] * shape[1] < 2000 { 3 } else { 1 } {
        for (all, one) in budgets.iter_mut().zip(self::budgets::<T>(kernel, [shape[0].max(9 * sibling), shape[1]], seed + sibling as u64)) {
            *all = [all[0].max(one[0]), if sibling == 0 { one[1] } else { all[1] }];
        }
    }
    let inputs = draw::<T>(kernel, shape, seed);
    let truth = kernel.define::<f64>(&arrays(&inputs, &kernel.inputs(shape)));
    let mut worst = 0.0f64;
    for (way, par) in ways::<T>() {
        let found = run(kernel, shape, &inputs, par);
        for threads in [2, 3] {
            let other = run(kernel, shape, &inputs, par.threads(threads));
            let bits = |x: &[Vec<T>]| -> Vec<u32> { x.iter().flatten().map(|x| x.to_f32().to_bits()).collect() };
            assert!(bits(&found) == bits(&other), "{threads} threads change bits of {} {way}, {shape:?}", kernel.name());
        }
        for (output, ((found, truth), [plain, largest])) in found.iter().zip(&truth).zip(&budgets).enumerate() {
            assert_eq!(found.len(), truth.values.len());
            for (at, (x, y)) in found.iter().zip(&truth.values).enumerate() {
                let x = f64::from(x.to_f32());
                if x == *y {
                    continue;
                }
                let share = (x - y).abs() / (2.0 * plain + 1e-6 * largest);
                assert!(
                    share <= 1.0,
                    "{} {way} {} {shape:?} seed={seed}: output {output}[{at}] is {x:e}, defined as {y:e}, {share:.2} of the budget",
                    kernel.name(),
                    std::any::type_name::<T>()
                );
                worst = worst.max(share);
            }
        }
    }
    worst
}

/// Every width and number of rows, in every storage type.
fn check_all(kernel: &impl Kernel) {
    let mut worst = 0.0f64;
    for (i, width) in WIDTHS.into_iter().enumerate() {
        for (j, rows) in ROWS.into_iter().enumerate() {
            let seed = 1 + (10 * i + j) as u64 * 1000;
            worst = worst.max(check::<f32>(kernel, [rows, width], seed));
            worst = worst.max(check::<bf16>(kernel, [rows, width], seed));
            if rows == 2 {
                worst = worst.max(check::<f16>(kernel, [rows, width], seed));
            }
        }
    }
    println!("{}: worst error/budget {worst:.2}", kernel.name());
}

/// `Σ out ∘ weights` moves by `gradient · step` when an input moves.
fn check_gradient(forward: &impl Define, inputs: &[Array<f64>], upstream: &[Array<f64>], gradients: &[&Array<f64>]) {
    let value = |inputs: &[Array<f64>]| -> f64 {
        let out = forward.define::<f64>(inputs);
        out.iter().zip(upstream).map(|(y, w)| y.values.iter().zip(&w.values).map(|(y, w)| y * w).sum::<f64>()).sum()
    };
    for (index, gradient) in gradients.iter().enumerate() {
        for at in 0..inputs[index].values.len() {
            let moved = |step: f64| {
                let mut inputs = inputs.to_vec();
                inputs[index].values[at] += step;
                value(&inputs)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let found = gradient.values[at];
            assert!((slope - found).abs() <= 1e-7 * (1.0 + slope.abs()), "{}: input {index}[{at}] {slope} {found}", forward.name());
        }
    }
}

fn matrix<T: Copy>(x: &[T], shape: [usize; 2]) -> Matrix<'_, T> {
    Matrix::new(x, shape, "input").unwrap()
}

fn out<T>(y: &mut [T], shape: [usize; 2]) -> MatrixMut<'_, T> {
    MatrixMut::new(y, shape, "output").unwrap()
}

impl Kernel for definitions::Activate {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        activation::forward(self.0, &matrix(&x[0], shape), &mut out(&mut y[0], shape), par)
    }
}

impl Kernel for definitions::ActivateBack {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape; 2]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        activation::backward(self.0, &matrix(&x[0], shape), &matrix(&x[1], shape), &mut out(&mut y[0], shape), par)
    }
}

/// Two matrices that are the halves of one, as a fused projection writes them.
impl Kernel for definitions::Swiglu {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape; 2]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape @ [rows, width]: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let both: Vec<T> = (0..rows).flat_map(|r| x.iter().flat_map(move |x| x[r * width..(r + 1) * width].to_vec())).collect();
        let half = |at| Matrix::strided(&both, at, shape, [2 * width as isize, 1], "gate").unwrap();
        swiglu::forward(&half(0), &half(if rows == 0 { 0 } else { width }), &mut out(&mut y[0], shape), par)
    }
}

impl Kernel for definitions::SwigluBack {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape; 3]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape; 2]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let [gate, up, dy] = [0, 1, 2].map(|i| matrix(&x[i], shape));
        let [dgate, dup] = y else { panic!("two outputs") };
        swiglu::backward([&gate, &up], &dy, [&mut out(dgate, shape), &mut out(dup, shape)], par)
    }
}

impl Kernel for definitions::Softmax {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let (x, y) = (matrix(&x[0], shape), &mut out(&mut y[0], shape));
        if self.log { softmax::log_forward(&x, y, par) } else { softmax::forward(&x, y, par) }
    }
}

impl Kernel for definitions::SoftmaxBack {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape; 2]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], dx: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let (y, dy, dx) = (matrix(&x[0], shape), matrix(&x[1], shape), &mut out(&mut dx[0], shape));
        if self.log { softmax::log_backward(&y, &dy, dx, par) } else { softmax::backward(&y, &dy, dx, par) }
    }
}

fn narrowed<T: Element>(x: &[f32]) -> Vec<T> {
    x.iter().map(|x| T::from_f32(*x)).collect()
}

impl Kernel for definitions::CrossEntropy {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn outputs(&self, [rows, _]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[1, 1], [rows, 1]]
    }
    fn run<T: Element>(&self, shape @ [rows, width]: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let (labels, mut lse) = (definitions::labels(rows, width), vec![f32::NAN; rows]);
        let labels = Labels::new(&labels).smoothing(self.smoothing);
        let loss = cross_entropy::forward(&matrix(&x[0], shape), &labels, &mut lse, par)?;
        (y[0], y[1]) = (narrowed(&[loss]), narrowed(&lse));
        Ok(())
    }
}

impl Kernel for definitions::CrossEntropyBack {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape, [shape[0], 1]]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape @ [rows, width]: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let labels: Vec<i32> = definitions::labels(rows, width).iter().map(|&label| label as i32).collect();
        let lse: Vec<f32> = x[1].iter().map(|x| x.to_f32()).collect();
        let labels = Labels::new(&labels).smoothing(self.smoothing);
        cross_entropy::backward(&matrix(&x[0], shape), &labels, (&lse, 0.5), &mut out(&mut y[0], shape), par)
    }
}

fn norm_of<T: Element>(norm: definitions::Norm, x: &[Vec<T>]) -> Norm<'_, T> {
    let [weight, bias] = [&x[x.len() - 2], &x[x.len() - 1]];
    if norm.centred { Norm::layer(weight, Some(bias), definitions::EPSILON) } else { Norm::rms(weight, definitions::EPSILON) }
}

impl Kernel for definitions::Norm {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape, [1, shape[1]], [1, shape[1]]]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        norm::forward(&norm_of(*self, x), &matrix(&x[0], shape), &mut out(&mut y[0], shape), par)
    }
}

impl Kernel for definitions::NormBack {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape, shape, shape, [1, shape[1]], [1, shape[1]]]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape, [1, shape[1]], [1, shape[1]]]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let [sum, dy, dsum] = [0, 1, 2].map(|i| matrix(&x[i], shape));
        let [dx, dweight, dbias] = y else { panic!("three outputs") };
        let mut gradients = norm::Gradients { dx: &mut out(dx, shape), dweight: Some(dweight), dbias: Some(dbias) };
        norm::backward(&norm_of(self.0, x), &sum, (&dy, Some(&dsum)), &mut gradients, par)
    }
}

/// Tokens `[N, 2, D]`, the heads beside one another.
impl Kernel for definitions::Rotate {
    fn inputs(&self, [rows, width]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[rows, 2 * width.max(4)]]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        self.inputs(shape)
    }
    fn run<T: Element>(&self, [rows, width]: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let d = width.max(4);
        let rotary = Rotary { pairing: self.pairing, ..Rotary::new(self.dims(d)) };
        let turns = Turns::new(&rotary, &definitions::positions(rows), par)?;
        let (shape, strides) = ([1, 2, rows, d], [2 * rows * d, d, 2 * d, 1]);
        let x = Strided::new(&x[0], 0, shape, strides.map(|s| s as isize), "x")?;
        let mut y = StridedMut::new(&mut y[0], shape, strides, "y")?;
        if self.back { turns.backward(&x, &mut y, par) } else { turns.forward(&x, &mut y, par) }
    }
}

impl Kernel for definitions::Gather {
    fn inputs(&self, [rows, width]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[definitions::VOCABULARY, width], [rows, 1]]
    }
    fn outputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let table = matrix(&x[0], [definitions::VOCABULARY, shape[1]]);
        embedding::forward(&table, &definitions::ids(shape[0]), &mut out(&mut y[0], shape), par)
    }
}

impl Kernel for definitions::Scatter {
    fn inputs(&self, shape: [usize; 2]) -> Vec<[usize; 2]> {
        vec![shape]
    }
    fn outputs(&self, [_, width]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[definitions::VOCABULARY, width]]
    }
    fn run<T: Element>(&self, shape: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let mut table = out(&mut y[0], [definitions::VOCABULARY, shape[1]]);
        embedding::backward(&definitions::ids(shape[0]), &matrix(&x[0], shape), &mut table, par)
    }
}

/// The weight as it is stored: `[out, in]`, or `[in, out]` with the strides exchanged.
fn stored<T: Copy>(linear: definitions::Linear, weight: &[T], shape: [usize; 2]) -> (Vec<T>, [isize; 2]) {
    let [outputs, inputs] = shape;
    if !linear.transposed {
        return (weight.to_vec(), [inputs as isize, 1]);
    }
    let turned = (0..inputs).flat_map(|i| (0..outputs).map(move |o| weight[o * inputs + i])).collect();
    (turned, [1, outputs as isize])
}

impl Kernel for definitions::Linear {
    fn inputs(&self, [rows, width]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[rows, width], [self.outputs, width], [1, self.outputs]]
    }
    fn outputs(&self, [rows, _]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[rows, self.outputs]; 2]
    }
    fn run<T: Element>(&self, shape @ [rows, width]: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let (weight, strides) = stored(*self, &x[1], [self.outputs, width]);
        let weight = Matrix::strided(&weight, 0, [self.outputs, width], strides, "weight")?;
        let [y, z] = y else { panic!("two outputs") };
        let map = Linear::new(weight, Some(&x[2])).activation(self.activation);
        map.forward(&matrix(&x[0], shape), &mut out(y, [rows, self.outputs]), Some(&mut out(z, [rows, self.outputs])), par)
    }
}

impl Kernel for definitions::LinearBack {
    fn inputs(&self, [rows, width]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[rows, width], [self.0.outputs, width], [rows, self.0.outputs], [rows, self.0.outputs]]
    }
    fn outputs(&self, [rows, width]: [usize; 2]) -> Vec<[usize; 2]> {
        vec![[rows, width], [self.0.outputs, width], [1, self.0.outputs]]
    }
    fn run<T: Element>(&self, shape @ [rows, width]: [usize; 2], x: &[Vec<T>], y: &mut [Vec<T>], par: Par) -> Result<(), Error> {
        let outputs = self.0.outputs;
        let (weight, strides) = stored(self.0, &x[1], [outputs, width]);
        let weight = Matrix::strided(&weight, 0, [outputs, width], strides, "weight")?;
        let [dx, dweight, dbias] = y else { panic!("three outputs") };
        let (dy, z) = (matrix(&x[2], [rows, outputs]), matrix(&x[3], [rows, outputs]));
        let map = Linear::new(weight, None).activation(self.0.activation);
        let mut turned = dweight.clone();
        let (mut straight, mut transposed) = (out(dweight, [outputs, width]), out(&mut turned, [width, outputs]));
        let place = match self.0.transposed {
            true => WeightGradient::Transposed(&mut transposed),
            false => WeightGradient::Straight(&mut straight),
        };
        let mut gradients = linear::Gradients { dx: Some(&mut out(dx, shape)), dweight: Some(place), dbias: Some(dbias) };
        map.backward(&matrix(&x[0], shape), (&dy, Some(&z)), &mut gradients, par)?;
        if self.0.transposed {
            *dweight = (0..outputs).flat_map(|o| turned[o..].iter().step_by(outputs)).copied().collect();
        }
        Ok(())
    }
}

#[test]
fn activations_keep_the_budget() {
    for f in Activation::ALL {
        check_all(&definitions::Activate(f));
        check_all(&definitions::ActivateBack(f));
    }
}

#[test]
fn swiglu_keeps_the_budget() {
    check_all(&definitions::Swiglu);
    check_all(&definitions::SwigluBack);
}

#[test]
fn softmax_keeps_the_budget() {
    for log in [false, true] {
        check_all(&definitions::Softmax { log });
        check_all(&definitions::SoftmaxBack { log });
    }
}

#[test]
fn cross_entropy_keeps_the_budget() {
    for smoothing in [0.0, 0.125] {
        check_all(&definitions::CrossEntropy { smoothing });
        check_all(&definitions::CrossEntropyBack { smoothing });
    }
}

#[test]
fn norms_keep_the_budget() {
    for centred in [false, true] {
        check_all(&definitions::Norm { centred });
        check_all(&definitions::NormBack(definitions::Norm { centred }));
    }
}

#[test]
fn rotary_keeps_the_budget() {
    for pairing in [Pairing::Halves, Pairing::Interleaved] {
        for (partial, back) in [(false, false), (true, false), (false, true), (true, true)] {
            check_all(&definitions::Rotate { pairing, partial, back });
        }
    }
}

#[test]
fn embeddings_keep_the_budget() {
    check_all(&definitions::Gather);
    check_all(&definitions::Scatter);
}

#[test]
fn linear_maps_keep_the_budget() {
    for (activation, outputs) in Activation::ALL.into_iter().zip([70, 1, 33, 130, 64, 17]) {
        let linear = definitions::Linear { activation, outputs, transposed: outputs % 2 == 0 };
        check_all(&linear);
        check_all(&definitions::LinearBack(linear));
    }
}

fn normals(random: &mut Random, shape: [usize; 2]) -> Array<f64> {
    Array::new(shape, (0..shape[0] * shape[1]).map(|_| f64::from(random.normal())).collect())
}

#[test]
fn definitions_of_backward_are_the_gradients_of_forward() {
    let shape = [3, 5];
    let mut random = Random::new(11);
    let [x, y, dy, dsum] = [(); 4].map(|()| normals(&mut random, shape));
    for f in Activation::ALL {
        let back = definitions::ActivateBack(f).define(&[x.clone(), dy.clone()]);
        check_gradient(&definitions::Activate(f), std::slice::from_ref(&x), std::slice::from_ref(&dy), &[&back[0]]);
    }
    let back = definitions::SwigluBack.define(&[x.clone(), y.clone(), dy.clone()]);
    check_gradient(&definitions::Swiglu, &[x.clone(), y.clone()], std::slice::from_ref(&dy), &[&back[0], &back[1]]);
    for log in [false, true] {
        let out = definitions::Softmax { log }.define(std::slice::from_ref(&x));
        let back = definitions::SoftmaxBack { log }.define(&[out[0].clone(), dy.clone()]);
        check_gradient(&definitions::Softmax { log }, std::slice::from_ref(&x), std::slice::from_ref(&dy), &[&back[0]]);
    }
    for smoothing in [0.0, 0.125] {
        let forward = definitions::CrossEntropy { smoothing };
        let lse = forward.define(std::slice::from_ref(&x)).remove(1);
        let back = definitions::CrossEntropyBack { smoothing }.define(&[x.clone(), lse]);
        let upstream = [Array::new([1, 1], vec![0.5]), Array::new([3, 1], vec![0.0; 3])];
        check_gradient(&forward, std::slice::from_ref(&x), &upstream, &[&back[0]]);
    }
    let [weight, bias] = [(); 2].map(|()| normals(&mut random, [1, 5]));
    for centred in [false, true] {
        let forward = definitions::Norm { centred };
        let none = Array::new(shape, vec![0.0; 15]);
        let back = definitions::NormBack(forward).define(&[x.clone(), dy.clone(), none.clone(), weight.clone(), bias.clone()]);
        let gradients: Vec<&Array<f64>> = back.iter().take(if centred { 3 } else { 2 }).collect();
        check_gradient(&forward, &[x.clone(), weight.clone(), bias.clone()], std::slice::from_ref(&dy), &gradients);
        let passed = definitions::NormBack(forward).define(&[x.clone(), dy.clone(), dsum.clone(), weight.clone(), bias.clone()]);
        for ((with, without), dsum) in passed[0].values.iter().zip(&back[0].values).zip(&dsum.values) {
            assert!((with - without - dsum).abs() < 1e-12);
        }
    }
    for pairing in [Pairing::Halves, Pairing::Interleaved] {
        let [x, dy] = [(); 2].map(|()| normals(&mut random, [3, 2 * 7]));
        let [forward, back] = [false, true].map(|back| definitions::Rotate { pairing, partial: false, back });
        let back = back.define(std::slice::from_ref(&dy));
        check_gradient(&forward, &[x], &[dy], &[&back[0]]);
    }
    let dy = normals(&mut random, [6, 5]);
    let table = normals(&mut random, [definitions::VOCABULARY, 5]);
    let back = definitions::Scatter.define(std::slice::from_ref(&dy));
    check_gradient(&definitions::Gather, &[table, Array::new([6, 1], vec![0.0; 6])], &[dy], &[&back[0]]);
    for activation in Activation::ALL {
        let forward = definitions::Linear { activation, outputs: 4, transposed: false };
        let [weight, bias, dy] = [[4, 5], [1, 4], [3, 4]].map(|shape| normals(&mut random, shape));
        let inputs = [x.clone(), weight.clone(), bias];
        let z = forward.define(&inputs).remove(1);
        let back = definitions::LinearBack(forward).define(&[x.clone(), weight, dy.clone(), z]);
        let upstream = [dy, Array::new([3, 4], vec![0.0; 12])];
        check_gradient(&forward, &inputs, &upstream, &back.iter().collect::<Vec<_>>());
    }
}

/// One row through an operation, at every level.
fn at_every_level(operation: impl Fn(&Matrix<'_, f32>, &mut MatrixMut<'_, f32>, Par) -> Result<(), Error>, x: &[f32]) -> Vec<Vec<f32>> {
    let shape = [1, x.len()];
    let one = |level| {
        let mut y = vec![f32::NAN; x.len()];
        operation(&matrix(x, shape), &mut out(&mut y, shape), Par::serial().level(level)).unwrap();
        y
    };
    levels().map(one).collect()
}

const EXTREMES: [f32; 9] = [1e4, -1e4, 1e-30, -1e-30, 0.0, 88.0, -88.0, 1e15, -1e15];

#[test]
fn activations_of_extremes_and_of_nan() {
    for f in Activation::ALL {
        let truth = definitions::Activate(f).define(&[Array::<f64>::new([1, 9], EXTREMES.map(f64::from).to_vec())]);
        for y in at_every_level(|x, y, par| activation::forward(f, x, y, par), &EXTREMES) {
            for (y, truth) in y.iter().zip(&truth[0].values) {
                assert!((f64::from(*y) - truth).abs() <= 1e-6 * truth.abs() + 1e-20, "{f:?}: {y:e} {truth:e}");
            }
        }
        let ones = [1.0f32; 9];
        for dx in at_every_level(|x, dx, par| activation::backward(f, x, &matrix(&ones, [1, 9]), dx, par), &EXTREMES) {
            let truth = definitions::ActivateBack(f).define(&[
                Array::<f64>::new([1, 9], EXTREMES[..7].iter().map(|x| f64::from(*x)).chain([50.0, -50.0]).collect()),
                Array::new([1, 9], vec![1.0; 9]),
            ]);
            for (dx, truth) in dx.iter().zip(&truth[0].values) {
                assert!((f64::from(*dx) - truth).abs() <= 1e-6, "{f:?}: {dx:e} {truth:e}");
            }
        }
        for y in at_every_level(|x, y, par| activation::forward(f, x, y, par), &[f32::NAN; 3]) {
            assert!(y.iter().all(|y| y.is_nan()), "{f:?} of what is not a number");
        }
    }
}

#[test]
fn softmax_of_extremes() {
    let inf = f32::INFINITY;
    for y in at_every_level(softmax::forward, &[1e4, -1e4, 1e4, -inf, 1e-30]) {
        assert_eq!(y, [0.5, 0.0, 0.5, 0.0, 0.0]);
    }
    for y in at_every_level(softmax::forward, &[-inf; 3]) {
        assert_eq!(y, [0.0; 3], "nothing to weigh");
    }
    for z in at_every_level(softmax::log_forward, &[-inf; 3]) {
        assert_eq!(z, [-inf; 3]);
    }
    for z in at_every_level(softmax::log_forward, &[1e4, -inf, 1e4]) {
        assert_eq!(z, [-std::f32::consts::LN_2, -inf, -std::f32::consts::LN_2]);
    }
    let far = f32::MIN;
    for y in at_every_level(softmax::forward, &[far, far, -inf, far, far]) {
        assert_eq!(y, [0.25, 0.25, 0.0, 0.25, 0.25], "all as far away as can be");
    }
    for y in at_every_level(softmax::forward, &[far, 3e38, 2e38]) {
        assert_eq!(y, [0.0, 1.0, 0.0]);
    }
    for y in at_every_level(softmax::forward, &[1.0, f32::NAN, 2.0]) {
        assert!(y.iter().all(|y| y.is_nan()));
    }
}

#[test]
fn nothing_labelled_is_no_loss() {
    let (x, labels) = ([1.0f32, 2.0, -1.0, f32::NEG_INFINITY], [7i64, 7]);
    let (mut lse, mut dx) = ([f32::NAN; 2], [f32::NAN; 4]);
    let labels = Labels::new(&labels).ignoring(7).smoothing(0.1);
    let logits = matrix(&x, [2, 2]);
    assert_eq!(cross_entropy::forward(&logits, &labels, &mut lse, Par::default()), Ok(0.0));
    assert_eq!(lse[1], -1.0);
    cross_entropy::backward(&logits, &labels, (&lse, 1.0), &mut out(&mut dx, [2, 2]), Par::default()).unwrap();
    assert_eq!(dx, [0.0; 4]);
}

/// Logits around 1e4, where an lse in f32 has no digit behind the point: the loss is summed from differences.
#[test]
fn a_loss_of_large_logits_keeps_its_digits() {
    let x = [1e4f32, 1e4 - 1.0, -1e4];
    for level in levels() {
        let loss = cross_entropy::forward(&matrix(&x, [1, 3]), &Labels::new(&[1i32]), &mut [0.0], Par::serial().level(level)).unwrap();
        assert!((f64::from(loss) - (1.0 + (-1f64).exp().ln_1p())).abs() < 1e-6, "{loss}");
    }
}

#[test]
fn norms_of_extremes() {
    let weight = [1.0f32; 4];
    for scale in [1e4f32, 1e-30, 0.0] {
        let x = [scale, -scale, scale, -scale].map(|x| x + if scale == 1e4 { 1e6 } else { 0.0 });
        for y in at_every_level(|x, y, par| norm::forward(&Norm::layer(&weight, None, 1e-12), x, y, par), &x) {
            let one = f64::from(scale) / (f64::from(scale).powi(2) + 1e-12).sqrt();
            assert!(y.iter().zip([one, -one, one, -one]).all(|(y, one)| (f64::from(*y) - one).abs() < 1e-6), "{scale}: {y:?}");
        }
    }
}

/// The sum is what was added, rounded, and its norm is that of the rounded sum.
#[test]
fn an_added_norm_is_the_sum_and_its_norm() {
    let mut random = Random::new(5);
    let shape = [13, 33];
    let [x, residual] = [(); 2].map(|()| (0..13 * 33).map(|_| bf16::from_f32(random.normal())).collect::<Vec<_>>());
    let [weight, bias] = [(); 2].map(|()| (0..33).map(|_| bf16::from_f32(random.normal())).collect::<Vec<_>>());
    let norm = Norm::layer(&weight, Some(&bias), 1e-5);
    for level in levels() {
        let par = Par::default().level(level);
        let [mut sum, mut y, mut alone] = [(); 3].map(|()| vec![bf16::NAN; 13 * 33]);
        let both = [&matrix(&x, shape), &matrix(&residual, shape)];
        norm::forward_added(&norm, both, [&mut out(&mut sum, shape), &mut out(&mut y, shape)], par).unwrap();
        for ((sum, x), residual) in sum.iter().zip(&x).zip(&residual) {
            assert_eq!(*sum, bf16::from_f32(x.to_f32() + residual.to_f32()));
        }
        norm::forward(&norm, &matrix(&sum, shape), &mut out(&mut alone, shape), par).unwrap();
        assert_eq!(y, alone);
    }
}

/// What is in a table of cos and sin at a million positions, against f64.
#[test]
fn a_million_positions_keep_their_angle() {
    let rotary = Rotary::new(64);
    let turns = Turns::new(&rotary, &[1_000_000i64], Par::default()).unwrap();
    let mut x = [0.0f32; 64];
    x[..32].fill(1.0);
    let mut y = [f32::NAN; 64];
    let shape = [1, 1, 1, 64];
    turns
        .forward(&Strided::contiguous(&x, shape, "x").unwrap(), &mut StridedMut::contiguous(&mut y, shape, "y").unwrap(), Par::default())
        .unwrap();
    for (i, f) in rotary.frequencies(1).unwrap().inverse.iter().enumerate() {
        let (sin, cos) = (1e6 * f).sin_cos();
        assert!((f64::from(y[i]) - cos).abs() < 1e-7 && (f64::from(y[32 + i]) - sin).abs() < 1e-7);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    let (x, mut y) = ([0.0f32; 12], [0.0f32; 12]);
    let par = Par::default();
    let wide = |x| Matrix::new(x, [3, 4], "x").unwrap();
    let message = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert_eq!(message(softmax::forward(&wide(&x), &mut out(&mut y, [4, 3]), par)), "y has shape [4, 3], expected [3, 4]");
    let turned = Matrix::new(&x, [4, 3], "x").unwrap().transposed();
    assert_eq!(
        message(softmax::forward(&turned, &mut out(&mut y, [3, 4]), par)),
        "x: the elements of a row must be neighbours, they are 3 apart"
    );
    let gather = |ids: &[i64], y: &mut [f32]| embedding::forward(&wide(&x), ids, &mut out(y, [2, 4]), par);
    assert_eq!(message(gather(&[0, 3], &mut y)), "ids: row 1 has id 3, the vocabulary has 3 entries");
    assert_eq!(message(gather(&[-1, 0], &mut y)), "ids: row 0 has id -1, the vocabulary has 3 entries");
    let scatter = embedding::backward(&[0u32, 1, 4], &wide(&x), &mut out(&mut y, [3, 4]), par);
    assert_eq!(message(scatter), "ids: row 2 has id 4, the vocabulary has 3 entries");
    let labelled = |labels: &[i64], smoothing| {
        cross_entropy::forward(&wide(&x), &Labels::new(labels).smoothing(smoothing), &mut [0.0; 3], par).map(drop)
    };
    assert_eq!(message(labelled(&[0, 1, 4], 0.0)), "labels: row 2 has label 4, there are 4 classes and -100 means none");
    assert_eq!(message(labelled(&[0, 1], 0.0)), "labels has shape [2], expected [3]");
    assert_eq!(message(labelled(&[0, 1, 2], 1.5)), "smoothing: 1.5 is not between 0 and 1");
    let linear = Linear::new(Matrix::new(&x, [2, 6], "weight").unwrap(), None);
    assert_eq!(message(linear.forward(&wide(&x), &mut out(&mut y, [3, 2]), None, par)), "weight has shape [2, 6], expected [2, 4]");
    let linear = Linear::new(Matrix::new(&x, [3, 4], "weight").unwrap(), None).activation(Activation::Gelu);
    let mut none = linear::Gradients::<f32, f32> { dx: None, dweight: None, dbias: None };
    let dy = [0.0; 9];
    assert_eq!(message(linear.backward(&wide(&x), (&matrix(&dy, [3, 3]), None), &mut none, par)), "the gradient of gelu needs z");
    let norm = Norm::rms(&x[..3], 1e-5);
    assert_eq!(message(norm::forward(&norm, &wide(&x), &mut out(&mut y, [3, 4]), par)), "weight has shape [3], expected [4]");
    assert_eq!(Rotary::new(7).frequencies(1).unwrap_err().to_string(), "dims: 7 rotary dims do not form pairs");
    let turns = Turns::new(&Rotary::new(6), &[0u32, 1, 2], par).unwrap();
    let shape = [1, 1, 3, 4];
    let heads = Strided::contiguous(&x, shape, "x").unwrap();
    assert_eq!(
        message(turns.forward(&heads, &mut StridedMut::contiguous(&mut y, shape, "y").unwrap(), par)),
        "dims: 6 rotary dims do not fit heads of 4"
    );
}

#[test]
fn gelu_is_nothing_or_its_argument_far_from_zero() {
    let x = [-f32::INFINITY, f32::MIN, -1e30, -20.0, -13.0, 13.0, 20.0, 1e30, f32::MAX, f32::INFINITY, f32::NAN];
    let shape = [1, x.len()];
    for level in levels() {
        let (mut y, mut dx, par) = ([0.0f32; 11], [0.0f32; 11], Par::serial().level(level));
        activation::forward(Activation::Gelu, &matrix(&x, shape), &mut out(&mut y, shape), par).unwrap();
        activation::backward(Activation::Gelu, &matrix(&x, shape), &matrix(&[1.0; 11], shape), &mut out(&mut dx, shape), par).unwrap();
        assert!(y[..5].iter().chain(&dx[..5]).all(|y| y.abs() < 1e-33), "{level}: {y:?} {dx:?}");
        assert!(y[5..10] == x[5..10] && dx[5..10].iter().all(|dx| *dx == 1.0), "{level}: {y:?} {dx:?}");
        assert!(y[10].is_nan() && dx[10].is_nan(), "{level}: {y:?} {dx:?}");
    }
}

#[test]
fn gelu_in_bf16_is_one_of_the_two_numbers_beside_it() {
    let x: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|x| x.is_finite()).collect();
    let shape = [1, x.len()];
    for level in levels() {
        let mut y = vec![bf16::ZERO; x.len()];
        activation::forward(Activation::Gelu, &matrix(&x, shape), &mut out(&mut y, shape), Par::serial().level(level)).unwrap();
        for (x, y) in x.iter().zip(&y) {
            let wide = x.to_f64();
            let expected = 0.5 * wide * (1.0 + definitions::erf(wide * std::f64::consts::FRAC_1_SQRT_2));
            let spacing = f64::from(expected.abs().max(1e-30).log2().floor() as i32 - 7).exp2();
            // What 1 + erf loses far left of zero.
            let lost = 1e-15 * wide.abs().min(13.0);
            assert!((y.to_f64() - expected).abs() <= 0.6 * spacing + lost, "{level}: {y} for {expected} of {x}");
        }
    }
}

#[test]
fn sums_over_parts_of_long_columns_are_those_of_the_definition() {
    // More steps than one part takes, in blocks that are not whole tiles, of a transposed and of a plain left side.
    // The last two are too large for parts: a transposed left side is copied for wide blocks there, the last one in several steps.
    for (m, n, k) in [(5, 7, 1000), (65, 130, 900), (9, 33, 3000), (520, 610, 33), (520, 390, 1600)] {
        let mut random = Random::new(11);
        let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| random.normal()).collect() };
        let (a, b) = (draw(m * k), draw(k * n));
        let at = |turned: bool, i: usize, t: usize| if turned { a[t * m + i] } else { a[i * k + t] };
        for turned in [false, true] {
            let left = if turned { matrix(&a, [k, m]).transposed() } else { matrix(&a, [m, k]) };
            let mut bits = Vec::new();
            for threads in [1, 2, 3] {
                let mut c = vec![f32::NAN; m * n];
                let map = Linear::new(matrix(&b, [k, n]).transposed(), None);
                map.forward(&left, &mut out(&mut c, [m, n]), None, Par::serial().threads(threads)).unwrap();
                for (i, row) in c.chunks(n).enumerate() {
                    for (j, found) in row.iter().enumerate() {
                        let terms = (0..k).map(|t| f64::from(at(turned, i, t)) * f64::from(b[t * n + j]));
                        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size): (f64, f64), x| (sum + x, size + x.abs()));
                        assert!((f64::from(*found) - sum).abs() <= 1e-6 * size, "{m}x{n}x{k} [{i},{j}]: {found} for {sum}");
                    }
                }
                bits.push(c.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            }
            assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "threads change bits of {m}x{n}x{k}");
        }
    }
}
