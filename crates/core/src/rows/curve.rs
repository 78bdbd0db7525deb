//! Activations as functions of one number, with their slopes.
//!
//! | name | `f(x)` | source |
//! |---|---|---|
//! | GELU | `x Φ(x)`, Φ the normal distribution | Hendrycks, Gimpel 2016, arXiv 1606.08415 |
//! | GELU, tanh form | `x/2 (1 + tanh u) = x σ(2u)`, `u = √(2/π)(x + 0.044715 x³)` | the same |
//! | SiLU | `x σ(x)` | the same; Elfwing et al. 2017, arXiv 1702.03118 |
//! | ReLU, tanh | `max(x, 0)`, `tanh x` | |
//!
//! There is no branch on x. `Φ(-a) = e^{-a²/2} P(t)` with `t = 1/(a + 4)` for `a ≥ 0`: P is the polynomial of degree 7 whose relative error is
//! least beside what the rounding of a²/2 allows (2.4e-8 of 1 + a²/2, before its own rounding), so that the tail, where 1 - erf would cancel, keeps its
//! digits. Φ is within 2.5e-7. For results of bf16 degree 4 of `t = 1/(a + 10/3)` does (2.1e-4), with a power of 2 and a reciprocal as rough,
//! which the other activations take for them, too; results in bf16 nearer to 0 than 2^-126 may be 0.

use crate::simd::Lanes;
use crate::view::Element;

/// What is applied to each element after a linear map, or by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x Φ(x)` with the normal distribution itself.
    Gelu,
    /// GELU with tanh in place of the normal distribution.
    GeluTanh,
    /// `x / (1 + e^-x)`, also called swish.
    Silu,
    /// `max(x, 0)`; its slope at 0 is 0.
    Relu,
    /// `tanh x`.
    Tanh,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Activation; 6] =
        [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Relu, Activation::Tanh];

    /// Its name in files of options.
    pub fn name(self) -> &'static str {
        match self {
            Activation::None => "none",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
            Activation::Relu => "relu",
            Activation::Tanh => "tanh",
        }
    }
}

/// An activation as a type, chosen when the loop is compiled.
pub(super) trait Curve: Copy + Sync {
    /// `f(x)`.
    fn value<S: Lanes>(self, s: S, x: S::F) -> S::F;
    /// `f'(x)`.
    fn slope<S: Lanes>(self, s: S, x: S::F) -> S::F;
    /// `f(x)` for a result of bf16: to 11 bits, if that is less work.
    #[inline(always)]
    fn rough<S: Lanes>(self, s: S, x: S::F) -> S::F {
        self.value(s, x)
    }
    /// `f(x)` for a result of type T.
    #[inline(always)]
    fn result<S: Lanes, T: Element>(self, s: S, x: S::F) -> S::F {
        if T::PAIRS { self.rough(s, x) } else { self.value(s, x) }
    }
}

/// Runs the same expression for the type of every activation.
macro_rules! each_curve {
    ($activation:expr, $curve:ident => $body:expr) => {{
        use $crate::rows::curve;
        match $activation {
            curve::Activation::None => {
                let $curve = curve::Line;
                $body
            }
            curve::Activation::Gelu => {
                let $curve = curve::Gelu;
                $body
            }
            curve::Activation::GeluTanh => {
                let $curve = curve::GeluTanh;
                $body
            }
            curve::Activation::Silu => {
                let $curve = curve::Silu;
                $body
            }
            curve::Activation::Relu => {
                let $curve = curve::Relu;
                $body
            }
            curve::Activation::Tanh => {
                let $curve = curve::Tanh;
                $body
            }
        }
    }};
}
pub(super) use each_curve;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// `√(2/π)` and `0.044715 √(2/π)`.
const TANH_FORM: [f32; 2] = [0.797_884_6, 0.035_677_408];
/// `1 / √(2π)`.
const DENSITY: f32 = 0.398_942_3;
/// P of the tail, constant first.
const TAIL: [f32; 8] = [0.000_215_720_87, 0.384_088_8, 2.028_754_5, -0.988_847_55, 88.323_1, -333.456_42, 1_518.195_8, -1_599.220_6];
/// Where Φ(-a) is about 1e-37.
const FAR: f32 = 12.75;
/// `t = 1 / (a + TAIL_START)`.
const TAIL_START: f32 = 4.0;
/// P for results of bf16.
const ROUGH_TAIL: [f32; 5] = [-0.000_195_511_82, 0.399_544_92, 1.474_121_7, 1.529_371_6, 25.490_566];
/// Its start.
const ROUGH_TAIL_START: f32 = 10.0 / 3.0;

#[derive(Clone, Copy)]
pub(super) struct Line;
#[derive(Clone, Copy)]
pub(super) struct Gelu;
#[derive(Clone, Copy)]
pub(super) struct GeluTanh;
#[derive(Clone, Copy)]
pub(super) struct Silu;
#[derive(Clone, Copy)]
pub(super) struct Relu;
#[derive(Clone, Copy)]
pub(super) struct Tanh;

impl Curve for Line {
    #[inline(always)]
    fn value<S: Lanes>(self, _: S, x: S::F) -> S::F {
        x
    }
    #[inline(always)]
    fn slope<S: Lanes>(self, s: S, _: S::F) -> S::F {
        s.splat(1.0)
    }
}

/// `|x|`, or the end of what is told from ∞: beyond [`FAR`] the tail and the density are as good as nothing, and would be denormal
/// numbers, which take many times as long.
#[inline(always)]
fn near<S: Lanes>(s: S, x: S::F) -> S::F {
    s.min(s.splat(FAR), s.abs(x))
}

/// `Φ(-a)` and `e^{-a²/2}`.
#[inline(always)]
fn tail<S: Lanes>(s: S, a: S::F) -> [S::F; 2] {
    let bell = s.exp2(s.mul(s.mul(a, a), s.splat(-0.5 * LOG2_E)));
    let t = s.reciprocal(s.add(a, s.splat(TAIL_START)));
    let mut p = s.splat(TAIL[7]);
    for c in TAIL[..7].iter().rev() {
        p = s.mul_add(p, t, s.splat(*c));
    }
    [s.mul(p, bell), bell]
}

impl Curve for Gelu {
    /// `x Φ(x) = max(x, 0) - |x| Φ(-|x|)`.
    #[inline(always)]
    fn value<S: Lanes>(self, s: S, x: S::F) -> S::F {
        let a = near(s, x);
        let [tail, _] = tail(s, a);
        s.mul_sub(a, tail, s.max(s.zero(), x))
    }
    /// `Φ(x) + x φ(x)`.
    #[inline(always)]
    fn slope<S: Lanes>(self, s: S, x: S::F) -> S::F {
        let a = near(s, x);
        let [tail, bell] = tail(s, a);
        // Φ(-a) - a φ(a), which is the slope left of 0; right of it the slope is 1 less that.
        let away = s.mul_sub(s.mul(a, bell), s.splat(DENSITY), tail);
        s.select(s.greater(x, s.zero()), s.sub(s.splat(1.0), away), away)
    }
    #[inline(always)]
    fn rough<S: Lanes>(self, s: S, x: S::F) -> S::F {
        let a = near(s, x);
        let bell = s.rough_exp2(s.mul(s.mul(a, a), s.splat(-0.5 * LOG2_E)));
        let t = s.rough_reciprocal(s.add(a, s.splat(ROUGH_TAIL_START)));
        let mut p = s.splat(ROUGH_TAIL[4]);
        for c in ROUGH_TAIL[..4].iter().rev() {
            p = s.mul_add(p, t, s.splat(*c));
        }
        s.mul_sub(a, s.mul(p, bell), s.max(s.zero(), x))
    }
}

/// `σ(x)`; the exponent is bounded so that its reciprocal stays a number.
#[inline(always)]
fn sigmoid<S: Lanes>(s: S, x: S::F) -> S::F {
    let exponent = s.min(s.splat(125.0), s.mul(x, s.splat(-LOG2_E)));
    s.reciprocal(s.add(s.splat(1.0), s.exp2(exponent)))
}

/// `σ(x)` for results of bf16.
#[inline(always)]
fn rough_sigmoid<S: Lanes>(s: S, x: S::F) -> S::F {
    let exponent = s.min(s.splat(125.0), s.mul(x, s.splat(-LOG2_E)));
    s.rough_reciprocal(s.add(s.splat(1.0), s.rough_exp2(exponent)))
}

/// The slope of `x σ(y)`: `σ + x σ (1 - σ) y'`.
#[inline(always)]
fn gated_slope<S: Lanes>(s: S, x: S::F, gate: S::F, inner: S::F) -> S::F {
    let bend = s.mul(gate, s.sub(s.splat(1.0), gate));
    s.mul_add(s.mul(x, bend), inner, gate)
}

/// `2u`.
#[inline(always)]
fn inside<S: Lanes>(s: S, x: S::F) -> S::F {
    s.mul(x, s.mul_add(s.mul(x, x), s.splat(2.0 * TANH_FORM[1]), s.splat(2.0 * TANH_FORM[0])))
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<S: Lanes>(self, s: S, x: S::F) -> S::F {
        s.mul(x, sigmoid(s, inside(s, x)))
    }
    #[inline(always)]
    fn rough<S: Lanes>(self, s: S, x: S::F) -> S::F {
        s.mul(x, rough_sigmoid(s, inside(s, x)))
    }
    #[inline(always)]
    fn slope<S: Lanes>(self, s: S, x: S::F) -> S::F {
        // σ is 0 or 1 in all bits beyond ±16, where the slope of the cubic would only overflow.
        let x = s.max(s.splat(-16.0), s.min(s.splat(16.0), x));
        let square = s.mul(x, x);
        let inner = s.mul_add(square, s.splat(6.0 * TANH_FORM[1]), s.splat(2.0 * TANH_FORM[0]));
        gated_slope(s, x, sigmoid(s, inside(s, x)), inner)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value<S: Lanes>(self, s: S, x: S::F) -> S::F {
        s.mul(x, sigmoid(s, x))
    }
    #[inline(always)]
    fn rough<S: Lanes>(self, s: S, x: S::F) -> S::F {
        s.mul(x, rough_sigmoid(s, x))
    }
    #[inline(always)]
    fn slope<S: Lanes>(self, s: S, x: S::F) -> S::F {
        gated_slope(s, x, sigmoid(s, x), s.splat(1.0))
    }
}

impl Curve for Relu {
    #[inline(always)]
    fn value<S: Lanes>(self, s: S, x: S::F) -> S::F {
        s.max(s.zero(), x)
    }
    #[inline(always)]
    fn slope<S: Lanes>(self, s: S, x: S::F) -> S::F {
        s.keep(s.greater(x, s.zero()), s.splat(1.0))
    }
}

impl Curve for Tanh {
    #[inline(always)]
    fn value<S: Lanes>(self, s: S, x: S::F) -> S::F {
        s.tanh(x)
    }
    #[inline(always)]
    fn slope<S: Lanes>(self, s: S, x: S::F) -> S::F {
        let y = s.tanh(x);
        s.mul(s.sub(s.splat(1.0), y), s.add(s.splat(1.0), y))
    }
}
