//! Inputs from and results to safetensors files.

use std::{fs, path::Path};

use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Aligned, Data, Result, Tensor};

/// `q [B,H,N,D]`, `k [B,G,M,D]`, `v [B,G,M,Dv]` and the gradient of the output, `do [B,H,N,Dv]`.
pub struct Inputs {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub d_o: Option<Tensor>,
}

impl Inputs {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let tensor = |name: &str| tensor_from(name, &file.tensor(name)?);
        Ok(Self {
            q: tensor("q")?,
            k: tensor("k")?,
            v: tensor("v")?,
            d_o: file
                .names()
                .contains(&"do")
                .then(|| tensor("do"))
                .transpose()?,
        })
    }

    /// `[B, H, N, Dv]`, the shape of the output.
    pub fn output_shape(&self) -> [usize; 4] {
        let [batch, heads, queries, _] = self.q.shape;
        [batch, heads, queries, self.v.shape[3]]
    }
}

pub(crate) fn write(path: &Path, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((*name, view(tensor)?)))
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, path)?;
    Ok(())
}

fn tensor_from(name: &str, view: &TensorView<'_>) -> Result<Tensor> {
    let shape = view
        .shape()
        .try_into()
        .map_err(|_| format!("{name} has {} dimensions, not 4", view.shape().len()))?;
    let len = view.shape().iter().product();
    let data = match view.dtype() {
        Dtype::F32 => {
            let mut values = Aligned::<f32>::zeros(len);
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(view.data());
            Data::F32(values)
        }
        Dtype::BF16 => {
            let mut values = Aligned::<bf16>::zeros(len);
            bytemuck::cast_slice_mut(&mut values).copy_from_slice(view.data());
            Data::Bf16(values)
        }
        other => return Err(format!("{name} is {other:?}; F32 or BF16 is expected").into()),
    };
    Ok(Tensor { shape, data })
}

fn view(tensor: &Tensor) -> Result<TensorView<'_>> {
    let (dtype, bytes) = match &tensor.data {
        Data::F32(values) => (Dtype::F32, bytemuck::cast_slice(values)),
        Data::Bf16(values) => (Dtype::BF16, bytemuck::cast_slice(values)),
    };
    Ok(TensorView::new(dtype, tensor.shape.to_vec(), bytes)?)
}
