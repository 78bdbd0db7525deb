//! What the operations of a thread did, counted: which route they took, what they copied, which gradients they computed.

use std::cell::Cell;
use std::ops::Sub;

/// Counts since the thread began; two readings are compared by subtraction.
///
/// ```
/// use regard::Tally;
/// let before = Tally::read();
/// assert_eq!(Tally::read() - before, Tally::default());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations that ran a fused kernel.
    pub fused: u64,
    /// Operations made of tensor operations.
    pub composed: u64,
    /// Gradients that fused kernels computed, one per tensor.
    pub gradients: u64,
    /// Tensors copied because a kernel could not read them where they stand.
    pub copies: u64,
}

thread_local! {
    static TALLY: Cell<Tally> = const { Cell::new(Tally { fused: 0, composed: 0, gradients: 0, copies: 0 }) };
}

impl Tally {
    /// The counts of this thread.
    pub fn read() -> Self {
        TALLY.get()
    }

    pub(crate) fn add(change: impl FnOnce(&mut Tally)) {
        let mut tally = TALLY.get();
        change(&mut tally);
        TALLY.set(tally);
    }
}

impl Sub for Tally {
    type Output = Tally;

    fn sub(self, before: Tally) -> Tally {
        Tally {
            fused: self.fused - before.fused,
            composed: self.composed - before.composed,
            gradients: self.gradients - before.gradients,
            copies: self.copies - before.copies,
        }
    }
}
