//! What row operations mean, written plainly over a kind of number: f64 for the truth, f32 for an honest implementation.

#![allow(dead_code, reason = "each suite uses a part")]

use regard_core::Element;
use regard_core::rows::{Activation, Pairing};
use std::ops::{Add, Div, Mul, Neg, Sub};

pub const EPSILON: f32 = 1e-5;
pub const VOCABULARY: usize = 20;

/// f64 or f32.
pub trait Real:
    Copy + Default + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self> + PartialOrd
{
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self {
        Self::of(erf(self.wide()))
    }
    fn abs(self) -> f64 {
        self.wide().abs()
    }
}

macro_rules! real {
    ($float:ty) => {
        impl Real for $float {
            fn of(x: f64) -> Self {
                x as $float
            }
            fn wide(self) -> f64 {
                f64::from(self)
            }
            fn exp(self) -> Self {
                <$float>::exp(self)
            }
            fn ln(self) -> Self {
                <$float>::ln(self)
            }
            fn sqrt(self) -> Self {
                <$float>::sqrt(self)
            }
            fn tanh(self) -> Self {
                <$float>::tanh(self)
            }
        }
    };
}
real!(f32);
real!(f64);

/// The error function: its series near 0, the continued fraction of its complement beyond.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = a;
    for n in (1..80).rev() {
        fraction = a + f64::from(n) / 2.0 / fraction;
    }
    let complement = if a > 27.0 { 0.0 } else { (-a * a).exp() / fraction / std::f64::consts::PI.sqrt() };
    (1.0 - complement).copysign(x)
}

/// A matrix, with the largest absolute summand of what it was summed from.
#[derive(Debug, Clone)]
pub struct Array<R> {
    pub shape: [usize; 2],
    pub values: Vec<R>,
    pub term: f64,
}

impl<R: Real> Array<R> {
    pub fn new(shape: [usize; 2], values: Vec<R>) -> Self {
        assert_eq!(shape[0] * shape[1], values.len());
        let term = values.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
        Array { shape, values, term }
    }

    /// Every element a sum of terms.
    pub fn sums<I: IntoIterator<Item = R>>(shape: [usize; 2], terms: impl Fn(usize, usize) -> I) -> Self {
        let (mut values, mut largest) = (Vec::new(), 0.0f64);
        for r in 0..shape[0] {
            for c in 0..shape[1] {
                let mut sum = R::default();
                for term in terms(r, c) {
                    largest = largest.max(term.abs());
                    sum = sum + term;
                }
                values.push(sum);
            }
        }
        Array { shape, values, term: largest }
    }

    pub fn each(shape: [usize; 2], f: impl Fn(usize, usize) -> R) -> Self {
        Self::sums(shape, |r, c| [f(r, c)])
    }

    pub fn at(&self, r: usize, c: usize) -> R {
        self.values[r * self.shape[1] + c]
    }

    pub fn row(&self, r: usize) -> &[R] {
        &self.values[r * self.shape[1]..(r + 1) * self.shape[1]]
    }

    fn term(self, term: f64) -> Self {
        Array { term: self.term.max(term), ..self }
    }
}

pub trait Define {
    fn name(&self) -> String;
    /// Makes a drawn number fit for an input.
    fn input(&self, _index: usize, x: f64) -> f64 {
        x
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>>;
    /// The plain implementation over this storage type, which holds arrays between its steps, too.
    fn plain<T: Element>(&self, x: &[Array<f32>]) -> Vec<Array<f32>> {
        self.define(x)
    }
}

fn half<R: Real>() -> R {
    R::of(0.5)
}

fn one<R: Real>() -> R {
    R::of(1.0)
}

fn sigmoid<R: Real>(x: R) -> R {
    one::<R>() / (one::<R>() + (-x).exp())
}

fn value<R: Real>(f: Activation, x: R) -> R {
    match f {
        Activation::None => x,
        Activation::Gelu => half::<R>() * x * (one::<R>() + (x * R::of(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        Activation::GeluTanh => {
            let u = R::of((2.0 / std::f64::consts::PI).sqrt()) * (x + R::of(0.044715) * x * x * x);
            half::<R>() * x * (one::<R>() + u.tanh())
        }
        Activation::Silu => x * sigmoid(x),
        Activation::Relu => {
            if x > R::default() {
                x
            } else {
                R::default()
            }
        }
        Activation::Tanh => x.tanh(),
    }
}

fn slope<R: Real>(f: Activation, x: R) -> R {
    match f {
        Activation::None => one(),
        Activation::Gelu => {
            let density = R::of((2.0 * std::f64::consts::PI).sqrt().recip()) * (-(half::<R>() * x * x)).exp();
            half::<R>() * (one::<R>() + (x * R::of(std::f64::consts::FRAC_1_SQRT_2)).erf()) + x * density
        }
        Activation::GeluTanh => {
            let root = R::of((2.0 / std::f64::consts::PI).sqrt());
            let t = (root * (x + R::of(0.044715) * x * x * x)).tanh();
            let inner = root * (one::<R>() + R::of(3.0 * 0.044715) * x * x);
            half::<R>() * (one::<R>() + t) + half::<R>() * x * (one::<R>() - t * t) * inner
        }
        Activation::Silu => sigmoid(x) * (one::<R>() + x * (one::<R>() - sigmoid(x))),
        Activation::Relu => R::of(if x > R::default() { 1.0 } else { 0.0 }),
        Activation::Tanh => one::<R>() - x.tanh() * x.tanh(),
    }
}

pub struct Activate(pub Activation);
pub struct ActivateBack(pub Activation);

impl Define for Activate {
    fn name(&self) -> String {
        format!("{:?}", self.0)
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        vec![Array::each(x[0].shape, |r, c| value(self.0, x[0].at(r, c)))]
    }
}

impl Define for ActivateBack {
    fn name(&self) -> String {
        format!("{:?} backward", self.0)
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        vec![Array::each(x[0].shape, |r, c| slope(self.0, x[0].at(r, c)) * x[1].at(r, c))]
    }
}

pub struct Swiglu;
pub struct SwigluBack;

impl Define for Swiglu {
    fn name(&self) -> String {
        "swiglu".into()
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        vec![Array::each(x[0].shape, |r, c| value(Activation::Silu, x[0].at(r, c)) * x[1].at(r, c))]
    }
}

impl Define for SwigluBack {
    fn name(&self) -> String {
        "swiglu backward".into()
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let dgate = |r, c| x[2].at(r, c) * x[1].at(r, c) * slope(Activation::Silu, x[0].at(r, c));
        vec![Array::each(x[0].shape, dgate), Array::each(x[0].shape, |r, c| x[2].at(r, c) * value(Activation::Silu, x[0].at(r, c)))]
    }
}

/// The largest of a row and `Σ e^(x - largest)`.
fn weights<R: Real>(x: &[R]) -> (R, R) {
    let m = x.iter().copied().fold(R::of(f64::NEG_INFINITY), |m, x| if x > m { x } else { m });
    (m, x.iter().fold(R::default(), |sum, x| sum + (*x - m).exp()))
}

pub struct Softmax {
    pub log: bool,
}
pub struct SoftmaxBack {
    pub log: bool,
}

impl Define for Softmax {
    fn name(&self) -> String {
        format!("softmax, logarithm {}", self.log)
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let define = |r, c| {
            let (m, sum) = weights(x[0].row(r));
            if self.log { x[0].at(r, c) - m - sum.ln() } else { (x[0].at(r, c) - m).exp() / sum }
        };
        vec![Array::each(x[0].shape, define)]
    }
}

impl Define for SoftmaxBack {
    fn name(&self) -> String {
        format!("softmax backward, logarithm {}", self.log)
    }
    /// Outputs of a softmax are positive, their logarithms negative.
    fn input(&self, index: usize, x: f64) -> f64 {
        match (index, self.log) {
            (0, true) => -x.abs(),
            (0, false) => x.abs() / 100.0,
            _ => x,
        }
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let (y, dy) = (&x[0], &x[1]);
        let factor = |r, c| if self.log { one() } else { y.at(r, c) };
        let sum = |r| (0..y.shape[1]).fold(R::default(), |sum, c| sum + factor(r, c) * dy.at(r, c));
        let sums: Vec<R> = (0..y.shape[0]).map(sum).collect();
        let define = |r: usize, c| if self.log { dy.at(r, c) - y.at(r, c).exp() * sums[r] } else { y.at(r, c) * (dy.at(r, c) - sums[r]) };
        vec![Array::each(y.shape, define)]
    }
}

/// A label for most rows.
pub fn labels(rows: usize, classes: usize) -> Vec<i64> {
    (0..rows).map(|r| if r % 5 == 1 { -100 } else { ((r * 7 + 3) % classes) as i64 }).collect()
}

pub struct CrossEntropy {
    pub smoothing: f32,
}
pub struct CrossEntropyBack {
    pub smoothing: f32,
}

impl Define for CrossEntropy {
    fn name(&self) -> String {
        format!("cross-entropy, smoothing {}", self.smoothing)
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let [rows, classes] = x[0].shape;
        let labels = labels(rows, classes);
        let lse = |r| {
            let (m, sum) = weights(x[0].row(r));
            m + sum.ln()
        };
        let lse = Array::each([rows, 1], |r, _| lse(r));
        let epsilon = R::of(self.smoothing.into());
        let loss = |r: usize| {
            let mean = x[0].row(r).iter().fold(R::default(), |sum, x| sum + *x) / R::of(classes as f64);
            lse.at(r, 0) - (one::<R>() - epsilon) * x[0].at(r, labels[r] as usize) - epsilon * mean
        };
        let counted: Vec<usize> = (0..rows).filter(|&r| labels[r] >= 0).collect();
        let total = counted.iter().fold(R::default(), |sum, &r| sum + loss(r)) / R::of(counted.len().max(1) as f64);
        let term = lse.term.max(x[0].term);
        vec![Array::new([1, 1], vec![total]).term(term), lse.term(x[0].term)]
    }
}

impl Define for CrossEntropyBack {
    fn name(&self) -> String {
        format!("cross-entropy backward, smoothing {}", self.smoothing)
    }
    /// An lse is above every logit.
    fn input(&self, index: usize, x: f64) -> f64 {
        if index == 1 { x.abs() + 8.0 } else { x.min(8.0) }
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let [rows, classes] = x[0].shape;
        let labels = labels(rows, classes);
        let counted = labels.iter().filter(|&&label| label >= 0).count().max(1) as f64;
        let epsilon = f64::from(self.smoothing);
        let define = |r: usize, c: usize| {
            if labels[r] < 0 {
                return R::default();
            }
            let target = epsilon / classes as f64 + if labels[r] as usize == c { 1.0 - epsilon } else { 0.0 };
            R::of(0.5 / counted) * ((x[0].at(r, c) - x[1].at(r, 0)).exp() - R::of(target))
        };
        vec![Array::each(x[0].shape, define).term(0.5 / counted)]
    }
}

#[derive(Clone, Copy)]
pub struct Norm {
    pub centred: bool,
}
pub struct NormBack(pub Norm);

impl Norm {
    fn units<R: Real>(self, x: &Array<R>) -> (Array<R>, Vec<R>) {
        let width = R::of(x.shape[1] as f64);
        let sum = |r: usize, f: &dyn Fn(R) -> R| x.row(r).iter().fold(R::default(), |sum, x| sum + f(*x));
        let means: Vec<R> = (0..x.shape[0]).map(|r| if self.centred { sum(r, &|x| x) / width } else { R::default() }).collect();
        let inverse = |r: usize| one::<R>() / (sum(r, &|x| (x - means[r]) * (x - means[r])) / width + R::of(EPSILON.into())).sqrt();
        let inverses: Vec<R> = (0..x.shape[0]).map(inverse).collect();
        (Array::each(x.shape, |r, c| (x.at(r, c) - means[r]) * inverses[r]), inverses)
    }
}

impl Define for Norm {
    fn name(&self) -> String {
        format!("norm, centred {}", self.centred)
    }
    /// A mean far from 0, which 16 bits do not hold.
    fn input(&self, index: usize, x: f64) -> f64 {
        if index == 0 && self.centred { x + 30.0 } else { x }
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let (units, _) = self.units(&x[0]);
        let bias = |c| if self.centred { x[2].at(0, c) } else { R::default() };
        vec![Array::sums(x[0].shape, |r, c| [units.at(r, c) * x[1].at(0, c), bias(c)])]
    }
}

impl Define for NormBack {
    fn name(&self) -> String {
        format!("norm backward, centred {}", self.0.centred)
    }
    /// A mean far from 0, which 16 bits do not hold.
    fn input(&self, index: usize, x: f64) -> f64 {
        if index == 0 && self.0.centred { x + 30.0 } else { x }
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let [sum, dy, dsum, weight] = [0, 1, 2, 3].map(|i| &x[i]);
        let shape @ [rows, columns] = sum.shape;
        let (units, inverses) = self.0.units(sum);
        let g = Array::each(shape, |r, c| dy.at(r, c) * weight.at(0, c));
        let mean = |f: &dyn Fn(usize) -> R| (0..columns).fold(R::default(), |sum, c| sum + f(c)) / R::of(columns as f64);
        let plain: Vec<R> = (0..rows).map(|r| if self.0.centred { mean(&|c| g.at(r, c)) } else { R::default() }).collect();
        let along: Vec<R> = (0..rows).map(|r| mean(&|c| g.at(r, c) * units.at(r, c))).collect();
        let terms =
            |r: usize, c| [g.at(r, c) * inverses[r], -plain[r] * inverses[r], -units.at(r, c) * along[r] * inverses[r], dsum.at(r, c)];
        let dweight = Array::sums([1, columns], |_, c| (0..rows).map(|r| dy.at(r, c) * units.at(r, c)).collect::<Vec<_>>());
        let dbias = Array::sums([1, columns], |_, c| (0..rows).map(|r| dy.at(r, c)).collect::<Vec<_>>());
        vec![Array::sums(shape, terms), dweight, dbias]
    }
}

/// Positions up to a million.
pub fn positions(rows: usize) -> Vec<u32> {
    (0..rows as u32).map(|r| [r, 999_999 - r, 1000 + 31 * r, 524_287][r as usize % 4]).collect()
}

pub struct Rotate {
    pub pairing: Pairing,
    pub partial: bool,
    pub back: bool,
}

impl Rotate {
    pub fn dims(&self, d: usize) -> usize {
        if self.partial { d / 4 * 2 } else { d / 2 * 2 }
    }
}

impl Define for Rotate {
    fn name(&self) -> String {
        format!("rotary {:?}, partial {}, backward {}", self.pairing, self.partial, self.back)
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let x = &x[0];
        let (d, positions) = (x.shape[1] / 2, positions(x.shape[0]));
        let dims = self.dims(d);
        let define = |r: usize, column: usize| {
            let (head, c) = (column / d, column % d);
            if c >= dims {
                return [x.at(r, column), R::default()];
            }
            let (pair, first) = match self.pairing {
                Pairing::Halves => (c % (dims / 2), c < dims / 2),
                Pairing::Interleaved => (c / 2, c % 2 == 0),
            };
            let other = match self.pairing {
                Pairing::Halves => (c + dims / 2) % dims,
                Pairing::Interleaved => c ^ 1,
            };
            let angle = f64::from(positions[r]) * 10_000f64.powf(-2.0 * pair as f64 / dims as f64);
            let sine = angle.sin() * if first == self.back { 1.0 } else { -1.0 };
            [x.at(r, column) * R::of(angle.cos()), x.at(r, head * d + other) * R::of(sine)]
        };
        vec![Array::sums(x.shape, define)]
    }
}

pub fn ids(rows: usize) -> Vec<i32> {
    (0..rows).map(|r| [3, (r * 11 % VOCABULARY) as i32][r % 2]).collect()
}

pub struct Gather;
pub struct Scatter;

impl Define for Gather {
    fn name(&self) -> String {
        "gather".into()
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        // The second input only says how many rows there are.
        let ids = ids(x[1].shape[0]);
        vec![Array::each([ids.len(), x[0].shape[1]], |r, c| x[0].at(ids[r] as usize, c))]
    }
}

impl Define for Scatter {
    fn name(&self) -> String {
        "scatter".into()
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let ids = ids(x[0].shape[0]);
        let terms =
            |v: usize, c| ids.iter().enumerate().filter(|(_, id)| **id as usize == v).map(|(r, _)| x[0].at(r, c)).collect::<Vec<_>>();
        vec![Array::sums([VOCABULARY, x[0].shape[1]], terms)]
    }
}

#[derive(Clone, Copy)]
pub struct Linear {
    pub activation: Activation,
    pub outputs: usize,
    pub transposed: bool,
}
pub struct LinearBack(pub Linear);

impl Define for Linear {
    fn name(&self) -> String {
        format!("linear to {}, {:?}, transposed {}", self.outputs, self.activation, self.transposed)
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        let [rows, inputs] = x[0].shape;
        let terms = |r, o| (0..inputs).map(|i| x[0].at(r, i) * x[1].at(o, i)).chain([x[2].at(0, o)]).collect::<Vec<_>>();
        let z = Array::sums([rows, self.outputs], terms);
        let y = Array::each(z.shape, |r, o| value(self.activation, z.at(r, o)));
        let term = z.term;
        vec![Array { term, ..y }, z]
    }
}

impl LinearBack {
    /// With dz as `held` between the steps.
    fn steps<R: Real>(&self, x: &[Array<R>], held: impl Fn(R) -> R) -> Vec<Array<R>> {
        let [from, weight, dy, z] = [0, 1, 2, 3].map(|i| &x[i]);
        let ([rows, inputs], outputs) = (from.shape, self.0.outputs);
        let dz = Array::each(dy.shape, |r, o| held(slope(self.0.activation, z.at(r, o)) * dy.at(r, o)));
        vec![
            Array::sums(from.shape, |r, i| (0..outputs).map(|o| dz.at(r, o) * weight.at(o, i)).collect::<Vec<_>>()),
            Array::sums([outputs, inputs], |o, i| (0..rows).map(|r| dz.at(r, o) * from.at(r, i)).collect::<Vec<_>>()),
            Array::sums([1, outputs], |_, o| (0..rows).map(|r| dz.at(r, o)).collect::<Vec<_>>()),
        ]
    }
}

impl Define for LinearBack {
    fn name(&self) -> String {
        format!("{} backward", self.0.name())
    }
    fn define<R: Real>(&self, x: &[Array<R>]) -> Vec<Array<R>> {
        self.steps(x, |dz| dz)
    }
    fn plain<T: Element>(&self, x: &[Array<f32>]) -> Vec<Array<f32>> {
        self.steps(x, |dz| T::from_f32(dz).to_f32())
    }
}
