//! Rows of a table by number. Saved: the ids.

use super::present;
use crate::autodiff::{self, Operation, Parents, Step};
use crate::flex::{self, Rows, typed};
use crate::{Error, Tally, door};
use burn::backend::flex::FlexTensor;
use burn::tensor::{Int, Tensor, module};
use regard_core::Par;
use regard_core::rows::embedding as kernel;
use std::sync::Arc;

/// `y[b, n] = table[ids[b, n]]`: table `[vocabulary, E]`, ids `[B, N]`, y `[B, N, E]`.
///
/// # Errors
/// If the tensors are on two devices, or, on the CPU, an id is not in the table; its row is named.
pub fn embedding(table: Tensor<2>, ids: Tensor<2, Int>) -> Result<Tensor<3>, Error> {
    door::plain_float(&table, "table")?;
    door::same_place(&table, "ids", &ids)?;
    if door::has_kernels(&table) {
        let shape = ids.dims();
        let ids = ids.into_data().iter::<i64>().collect();
        return autodiff::run(Gather { ids, shape }, [Some(table.into())]);
    }
    Tally::add(|tally| tally.composed += 1);
    Ok(module::embedding(table, ids))
}

#[derive(Debug, Clone)]
struct Gather {
    ids: Arc<[i64]>,
    shape: [usize; 2],
}

impl Operation<1> for Gather {
    /// The table's shape.
    type Saved = Vec<usize>;

    fn reads(&self, _tracked: [bool; 1]) -> [bool; 1] {
        [false]
    }

    fn forward(&self, parents: &Parents<1>, _keep: bool) -> Result<(FlexTensor, Vec<usize>), Error> {
        let table = flex::as_rows(present(parents, 0));
        let y = typed!(table, T => {
            let mut y = Rows::<T>::new(&[self.shape[0], self.shape[1], table.layout().shape()[1]]);
            kernel::forward(&flex::matrix(&table, "table")?, &self.ids, &mut y.matrix("y")?, Par::default())?;
            Ok(y.into_tensor())
        })?;
        Ok((y, table.layout().shape().to_vec()))
    }

    fn backward(&self, step: Step<Self, 1>, _wanted: [bool; 1]) -> Result<Parents<1>, Error> {
        let dy = flex::as_rows(&step.gradient);
        let dtable = typed!(dy, T => {
            let mut dtable = Rows::<T>::new(&step.saved);
            kernel::backward(&self.ids, &flex::matrix(&dy, "dy")?, &mut dtable.matrix("dtable")?, Par::default())?;
            Ok(dtable.into_tensor())
        })?;
        Ok([Some(dtable)])
    }
}
