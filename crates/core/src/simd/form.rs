//! What a lane of a product's operands holds: one f32, or a pair of bf16 that one instruction multiplies and adds up.

use super::portable::Portable;
use super::{Lanes, Left, Level, Task, dispatch};

/// How the operands of a product are held.
pub trait Form: Send + Sync + 'static {
    /// Steps of a product in a lane.
    const PER_LANE: usize;

    /// The broadcast factor of a tile whose lanes are of this form.
    fn left<A: Left>(a: A) -> impl Left;
    /// The steps of one lane together, those beyond [`Form::PER_LANE`] left out.
    fn join<S: Lanes>(s: S, steps: [S::F; 2]) -> S::F;
    /// `sum` plus the products of all steps of a lane.
    fn multiply_add<S: Lanes>(s: S, a: S::F, b: S::F, sum: S::F) -> S::F;
    /// Every step of every lane multiplied by a factor.
    fn scale<S: Lanes>(s: S, x: S::F, factor: S::F) -> S::F;
    /// Runs a task at `level`, or at the best one below it that the processor has and that knows this form.
    fn dispatch<T: Task>(level: Level, task: T) -> T::Output;

    /// Rows that hold `steps`.
    fn rows(steps: usize) -> usize {
        steps.div_ceil(Self::PER_LANE)
    }
}

/// One f32.
#[derive(Debug, Clone, Copy)]
pub struct Singles;

/// Two bf16, the first step in the lower half.
#[derive(Debug, Clone, Copy)]
pub struct Pairs;

impl Form for Singles {
    const PER_LANE: usize = 1;

    #[inline(always)]
    fn left<A: Left>(a: A) -> impl Left {
        a
    }
    #[inline(always)]
    fn join<S: Lanes>(_: S, steps: [S::F; 2]) -> S::F {
        steps[0]
    }
    #[inline(always)]
    fn multiply_add<S: Lanes>(s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        s.mul_add(a, b, sum)
    }
    #[inline(always)]
    fn scale<S: Lanes>(s: S, x: S::F, factor: S::F) -> S::F {
        s.mul(x, factor)
    }
    fn dispatch<T: Task>(level: Level, task: T) -> T::Output {
        dispatch(level, task)
    }
}

impl Form for Pairs {
    const PER_LANE: usize = 2;

    #[inline(always)]
    fn left<A: Left>(a: A) -> impl Left {
        Paired(a)
    }
    #[inline(always)]
    fn join<S: Lanes>(s: S, steps: [S::F; 2]) -> S::F {
        s.pair(steps)
    }
    #[inline(always)]
    fn multiply_add<S: Lanes>(s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        s.dot_pairs(a, b, sum)
    }
    #[inline(always)]
    fn scale<S: Lanes>(s: S, x: S::F, factor: S::F) -> S::F {
        let [first, second] = s.unpair(x);
        s.pair([s.mul(first, factor), s.mul(second, factor)])
    }
    /// Where the processor has no such instruction, two products in plain Rust take its place: for tests, at no speed.
    #[inline(never)]
    fn dispatch<T: Task>(level: Level, task: T) -> T::Output {
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Avx512
            && let Some(s) = super::avx512::Avx512::<true>::new()
        {
            return s.vectorize(task);
        }
        let _ = level;
        Portable.vectorize(task)
    }
}

/// A factor that is multiplied pair by pair.
#[derive(Debug, Clone, Copy)]
struct Paired<A>(A);

impl<A: Left> Left for Paired<A> {
    #[inline(always)]
    fn data(&self) -> &[f32] {
        self.0.data()
    }
    #[inline(always)]
    fn at(&self, r: usize, t: usize) -> usize {
        self.0.at(r, t)
    }
    #[inline(always)]
    fn below(self, first: usize) -> Self {
        Paired(self.0.below(first))
    }
    #[inline(always)]
    fn after(self, first: usize) -> Self {
        Paired(self.0.after(first))
    }
    #[inline(always)]
    fn multiply_add<S: Lanes>(s: S, a: S::F, b: S::F, sum: S::F) -> S::F {
        Pairs::multiply_add(s, a, b, sum)
    }
}
